# crash: makes the VMM itself give up: it jumps to an address where the machine has no memory, and KVM cannot run code
# that is not there (an internal error). Firecracker exits with 1 on every host. For tests of crashes and `OnFailure`.
        .include "common.inc"
        .set NOWHERE, 0x30000000        # 768 MiB: mapped by the page tables, far beyond the memory of a test guest
        .text
        .globl  _start
_start: cli
        PUTS    ready
        mov     $NOWHERE, %eax
        jmp     *%rax

ready:  .asciz  "GUEST READY\n"
