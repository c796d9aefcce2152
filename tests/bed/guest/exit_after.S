# exit_after: works for a while, then shuts down in order (Firecracker exits with 0).
# How long is said by the boot arguments: `ms=N` milliseconds; without it, not at all.
# For tests of restart policies, back-off and crash loops.
#
# Time is read from the time-stamp counter, taken to run at 2.5 GHz: right within a factor of two on any server of
# these years, which is enough here. Counting turns of a loop is not: KVM on KVM can make one a thousand times slower.
        .include "common.inc"
        .set BOOT_PARAMS_CMDLINE, 0x228 # `hdr.cmd_line_ptr` in struct boot_params
        .set TICKS_PER_MS, 2500000

# NOW register: reads the time-stamp counter. Clobbers rax, rdx.
        .macro NOW register
        rdtsc
        shl     $32, %rdx
        or      %rdx, %rax
        .ifnc   \register, %rax
        mov     %rax, \register
        .endif
        .endm

        .text
        .globl  _start
_start: cli
        PUTS    ready
        xor     %ecx, %ecx              # rcx = N
        mov     BOOT_PARAMS_CMDLINE(%rsi), %esi
        test    %rsi, %rsi
        jz      wait

# Find "ms=" in the NUL-terminated command line.
find:   mov     (%rsi), %eax
        test    %al, %al
        jz      wait
        and     $0xffffff, %eax
        inc     %rsi
        cmp     $0x3d736d, %eax         # "ms="
        jne     find
        add     $2, %rsi

digit:  movzbl  (%rsi), %eax
        sub     $'0', %eax
        cmp     $9, %eax                # unsigned: also true for what sorts before '0'
        ja      wait
        imul    $10, %rcx
        add     %rax, %rcx
        inc     %rsi
        jmp     digit

wait:   imul    $TICKS_PER_MS, %rcx
        NOW     %rbx                   # rbx = start
1:      NOW     %rax
        sub     %rbx, %rax
        cmp     %rcx, %rax
        jae     done
        pause
        jmp     1b

done:   PUTS    bye
        POWEROFF

ready:  .asciz  "GUEST READY\n"
bye:    .asciz  "GUEST BYE\n"
