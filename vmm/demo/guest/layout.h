// Constants that assembly and C share.
#ifndef LAYOUT_H
#define LAYOUT_H

// The project's own ports (vmm/demo/README.md).
#define PORT_EXIT	0x501	// byte = exit status, ends the machine
#define PORT_MARK	0x502	// byte = milestone

#define MARK_ENTRY	1	// first instruction
#define MARK_KMAIN	2	// long mode, start_info read
#define MARK_MODE	3	// console, interrupts and timer are up
#define MARK_END	4	// about to end

// Segment selectors of boot_gdt.
#define SEL_CODE64	0x08
#define SEL_DATA	0x10
#define SEL_CODE32	0x18

// Page-table bits (Intel SDM vol. 3A §4.5): present, writable, large, PCD|PWT.
#define PTE_TABLE	0x03
#define PTE_PAGE	0x83
#define PTE_UNCACHED	0x18

#define CR0_PE		0x00000001
#define CR0_WP		0x00010000
#define CR0_PG		0x80000000
#define CR4_PAE		0x00000020
#define MSR_EFER	0xC0000080
#define EFER_LME	0x00000100

// Vectors: exceptions below 32, then ours.
#define VEC_TIMER	32
#define VEC_UART	33
#define VEC_VIRTIO	34	// + device number
#define VEC_AP		62	// wakes another CPU
#define VEC_SPURIOUS	63	// low four bits ones (Intel SDM vol. 3A §10.9)
#define VECTORS		64

// APs start in this page (vector of the start-up IPI = page number).
#define AP_PAGE		0x8000
#define MAX_CPUS	32
#define AP_STACK	4096

#endif
