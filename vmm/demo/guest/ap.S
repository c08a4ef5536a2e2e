// Where the other CPUs start: real mode at AP_PAGE, by INIT and start-up IPI
// (Intel MultiProcessor Specification 1.4 §B.4). The code between ap_begin and
// ap_end is copied there; it addresses itself relative to the page.

#include "layout.h"

#define REL(x)	((x) - ap_begin)

	.text
	.globl	ap_begin, ap_end
	.code16
ap_begin:
	cli
	cld
	movw	%cs, %ax
	movw	%ax, %ds
	lgdtl	REL(ap_gdt_ptr)
	movl	%cr0, %eax
	orl	$CR0_PE, %eax
	movl	%eax, %cr0
	ljmpl	$SEL_CODE32, $(AP_PAGE + REL(ap_32))

	.code32
ap_32:
	movl	$SEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$boot_pml4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	// CD and NW are set after INIT (Intel SDM vol. 3A table 9-1): clear them.
	movl	$(CR0_PG | CR0_PE | CR0_WP), %eax
	movl	%eax, %cr0
	ljmp	$SEL_CODE64, $ap_64

	.align	8
ap_gdt_ptr:
	.word	31
	.long	boot_gdt
ap_end:

	.code64
ap_64:
	movl	$SEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	// A number of its own, and with it a stack.
	movl	$1, %edi
	lock xaddl %edi, ap_next
	cmpl	$MAX_CPUS, %edi
	jae	1f
	movl	%edi, %eax
	shll	$12, %eax
	leaq	ap_stacks + AP_STACK(%rax), %rsp
	xorl	%ebp, %ebp
	call	ap_main
1:	cli
	hlt
	jmp	1b

	.bss
	.align	4096
ap_stacks:	.skip	MAX_CPUS * AP_STACK
	.globl	ap_next
ap_next:	.skip	4

	.section .note.GNU-stack, "", @progbits
