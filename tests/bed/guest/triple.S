# triple: dies of a triple fault, as a guest whose kernel is broken does.
# For tests of crashes. What the VMM makes of it depends on the host's KVM: a shutdown exit (Firecracker exits with 0)
# or an internal error (1). A test that needs the failure for sure uses `crash`.
        .include "common.inc"
        .text
        .globl  _start
_start: cli
        PUTS    ready
        lidt    no_idt(%rip)            # no handler for the fault, none for the double fault
        ud2
1:      hlt
        jmp     1b

ready:  .asciz  "GUEST READY\n"
        .balign 8
no_idt: .word   0
        .quad   0
