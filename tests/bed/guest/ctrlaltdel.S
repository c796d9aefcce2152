# ctrlaltdel: idles at 0 % CPU and shuts down in order when Ctrl-Alt-Del is pressed (Firecracker exits with 0).
# The well-behaved guest: Firecracker's `SendCtrlAltDel` types the three keys on an i8042 keyboard, each byte raising
# IRQ 1 of the legacy interrupt controller (PIC).
        .include "common.inc"
        .set PIC1, 0x20                 # command port of the first PIC; its data port is one higher
        .set PIC2, 0xa0
        .set IRQ_BASE, 0x20             # vectors 0x20 to 0x2f, clear of the CPU's own exceptions
        .set IDT_ENTRIES, IRQ_BASE + 16
        .set LAST_SCANCODE, 0x71        # the last byte that Firecracker sends for Ctrl-Alt-Del

        .macro OUTB value, port
        mov     $\value, %al
        out     %al, $\port
        .endm

        .text
        .globl  _start
_start: cli
        lea     stack_top(%rip), %rsp

# Let all sixteen vectors point to one handler; only IRQ 1 will be let through.
        lea     irq1(%rip), %rax
        lea     idt(%rip), %rdi
        mov     $IRQ_BASE, %ecx
1:      call    set_gate
        inc     %ecx
        cmp     $IDT_ENTRIES, %ecx
        jb      1b
        lidt    idtr(%rip)

# Program both PICs by their four initialisation words, then unmask IRQ 1.
        OUTB    0x11, PIC1              # initialise, cascaded, a fourth word follows
        OUTB    0x11, PIC2
        OUTB    IRQ_BASE, PIC1 + 1      # vectors
        OUTB    IRQ_BASE + 8, PIC2 + 1
        OUTB    0x04, PIC1 + 1          # the second PIC hangs on line 2
        OUTB    0x02, PIC2 + 1
        OUTB    0x01, PIC1 + 1          # 8086 mode
        OUTB    0x01, PIC2 + 1
        OUTB    0xfd, PIC1 + 1          # all masked but IRQ 1
        OUTB    0xff, PIC2 + 1

        PUTS    ready

# A key pressed before the PIC was programmed left its byte behind, but its edge is lost: drain what is there before
# each sleep. `sti` takes effect after the next instruction, so nothing slips in between it and `hlt`.
drain:  in      $I8042_CMD, %al
        test    $1, %al
        jz      sleep
        in      $I8042_DATA, %al
        cmp     $LAST_SCANCODE, %al
        je      stop
        jmp     drain
sleep:  sti
        hlt
        cli
        jmp     drain

stop:   PUTS    bye
        POWEROFF

irq1:   in      $I8042_DATA, %al
        cmp     $LAST_SCANCODE, %al
        je      stop
        OUTB    0x20, PIC1              # end of interrupt
        iretq

# set_gate: makes entry ECX of the interrupt table at RDI an interrupt gate to the handler at RAX.
# Clobbers edx, r8, r9, r10.
set_gate:
        mov     %ecx, %edx
        shl     $4, %edx                # an entry has 16 bytes
        lea     (%rdi,%rdx), %r8
        mov     %ax, (%r8)              # handler, bits 0 to 15
        mov     %cs, %r9d
        mov     %r9w, 2(%r8)            # code segment
        movw    $0x8e00, 4(%r8)         # present, ring 0, 64-bit interrupt gate
        mov     %rax, %r10
        shr     $16, %r10
        mov     %r10w, 6(%r8)           # handler, bits 16 to 31
        shr     $16, %r10
        mov     %r10d, 8(%r8)           # handler, bits 32 to 63
        movl    $0, 12(%r8)
        ret

ready:  .asciz  "GUEST READY\n"
bye:    .asciz  "GUEST STOP\n"
        .balign 16
idtr:   .word   IDT_ENTRIES * 16 - 1
        .quad   idt
        .balign 16
idt:    .skip   IDT_ENTRIES * 16
        .skip   4096
stack_top:
