# halt: runs for ever at 0 % CPU and is deaf to Ctrl-Alt-Del.
# For tests of what happens when a guest will not shut down in time.
        .include "common.inc"
        .text
        .globl  _start
_start: cli                             # interrupts stay off: nothing ever ends the hlt
        PUTS    ready
1:      hlt
        jmp     1b

ready:  .asciz  "GUEST READY\n"
