#include "textflag.h"

// func egetkey(request *[512]byte, key *[16]byte) uint32
//
// ENCLU with leaf 1 in RAX, the aligned KEYREQUEST in RBX and the aligned output in RCX. RAX is the error code after it.
TEXT ·egetkey(SB), NOSPLIT, $0-20
	MOVQ request+0(FP), BX
	MOVQ key+8(FP), CX
	MOVQ $1, AX
	BYTE $0x0f
	BYTE $0x01
	BYTE $0xd7
	MOVL AX, ret+16(FP)
	RET
