#include "textflag.h"

// func outb(port uint16, v uint8)
TEXT ·outb(SB), NOSPLIT, $0-3
	MOVW	port+0(FP), DX
	MOVB	v+2(FP), AX
	OUTB
	RET

// func outw(port, v uint16)
TEXT ·outw(SB), NOSPLIT, $0-4
	MOVW	port+0(FP), DX
	MOVW	v+2(FP), AX
	OUTW
	RET

// func insb(port uint16, p *byte, n int)
TEXT ·insb(SB), NOSPLIT, $0-24
	MOVW	port+0(FP), DX
	MOVQ	p+8(FP), DI
	MOVQ	n+16(FP), CX
	CLD
	REP; INSB
	RET
