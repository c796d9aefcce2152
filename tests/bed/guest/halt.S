# halt: runs for ever at 0 % CPU and is deaf to Ctrl-Alt-Del.
# For tests of what happens when a guest will not shut down in time, and wherever any VM will do.
#
# It runs under QEMU too, which enters an ELF file by the PVH boot protocol if a note says where: in 32-bit protected mode,
# paging and interrupts off (xen/include/public/arch-x86/hvm/start_info.h).
        .include "common.inc"
        .set XEN_ELFNOTE_PHYS32_ENTRY, 18
        .text
        .globl  _start
_start: cli                             # interrupts stay off: nothing ever ends the hlt
        PUTS    ready
1:      hlt
        jmp     1b

        .code32
pvh:    cli
        mov     $ready, %esi
        mov     $COM1, %dx
1:      lodsb
        test    %al, %al
        jz      2f
        out     %al, %dx
        jmp     1b
2:      hlt
        jmp     2b

ready:  .asciz  "GUEST READY\n"

        .section .note.pvh, "a", @note
        .balign 4
        .long   4, 4, XEN_ELFNOTE_PHYS32_ENTRY  # the sizes of the name and of what follows it, the note's type
        .asciz  "Xen"
        .long   pvh
