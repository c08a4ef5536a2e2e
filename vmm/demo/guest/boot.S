// The way from the PVH entry (32-bit protected mode, paging off, EBX =
// start_info) to kmain in long mode. PVH boot protocol: Xen
// docs/misc/pvh.pandoc; entry state "x86/HVM direct boot ABI".

#include "layout.h"

	.section .note.pvh, "a", @note
	.align	4
	.long	4, 8, 18		// XEN_ELFNOTE_PHYS32_ENTRY
	.asciz	"Xen"
	.quad	pvh_start

	.section .text.boot, "ax", @progbits
	.code32
	.globl	pvh_start
pvh_start:
	// Before anything else: tell the monitor that the guest runs.
	movw	$PORT_MARK, %dx
	movb	$MARK_ENTRY, %al
	outb	%al, %dx

	cli
	cld
	movl	$boot_stack_top, %esp
	movl	%ebx, %esi		// cpuid destroys ebx

	// The first 4 GiB one to one: four 1 GiB pages where the CPU has them,
	// else what map() adds, beginning with 16 MiB in pages of 2 MiB. (Filling
	// 2,048 entries here would take milliseconds where ring 0 is emulated.)
	movl	$boot_pml4, %edi
	movl	$boot_pdpt + PTE_TABLE, (%edi)
	movl	$boot_pdpt, %edi
	movl	$0x80000000, %eax
	cpuid
	cmpl	$0x80000001, %eax
	jb	small_pages
	movl	$0x80000001, %eax
	cpuid
	btl	$26, %edx		// Page1GB
	jnc	small_pages
	movl	$0x00000000 + PTE_PAGE, (%edi)
	movl	$0x40000000 + PTE_PAGE, 8(%edi)
	movl	$0x80000000 + PTE_PAGE, 16(%edi)
	movl	$0xC0000000 + PTE_PAGE + PTE_UNCACHED, 24(%edi)
	movb	$1, boot_gigapages
	jmp	paging
small_pages:
	movl	$boot_pd + PTE_TABLE, %eax
	movl	$4, %ecx
1:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$4096, %eax
	loop	1b
	movl	$boot_pd, %edi
	movl	$PTE_PAGE, %eax
	movl	$8, %ecx
2:	movl	%eax, (%edi)
	addl	$8, %edi
	addl	$0x200000, %eax
	loop	2b

paging:
	movl	%cr4, %eax
	orl	$CR4_PAE, %eax
	movl	%eax, %cr4
	movl	$boot_pml4, %eax
	movl	%eax, %cr3
	movl	$MSR_EFER, %ecx
	rdmsr
	orl	$EFER_LME, %eax
	wrmsr
	movl	%cr0, %eax
	orl	$(CR0_PG | CR0_PE | CR0_WP), %eax
	movl	%eax, %cr0
	lgdt	boot_gdt_ptr
	ljmp	$SEL_CODE64, $long_mode

	.code64
long_mode:
	movl	$SEL_DATA, %eax
	movl	%eax, %ds
	movl	%eax, %es
	movl	%eax, %ss
	xorl	%eax, %eax
	movl	%eax, %fs
	movl	%eax, %gs
	movq	$boot_stack_top, %rsp
	movl	%esi, %edi
	xorl	%ebp, %ebp
	call	kmain
1:	cli
	hlt
	jmp	1b

	.section .rodata
	.align	8
	.globl	boot_gdt, boot_gdt_ptr
boot_gdt:
	.quad	0
	.quad	0x00af9b000000ffff	// 64-bit code
	.quad	0x00cf93000000ffff	// data
	.quad	0x00cf9b000000ffff	// 32-bit code
boot_gdt_end:
	.word	0, 0, 0
boot_gdt_ptr:
	.word	boot_gdt_end - boot_gdt - 1
	.quad	boot_gdt

	.bss
	.align	4096
	.globl	boot_pml4, boot_pdpt, boot_gigapages
boot_pml4:	.skip	4096
boot_pdpt:	.skip	4096
boot_pd:	.skip	4 * 4096
boot_stack:	.skip	16384
boot_stack_top:
boot_gigapages:	.skip	8

	.section .note.GNU-stack, "", @progbits
