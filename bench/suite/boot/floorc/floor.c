/*
 * The least that a monitor can do: open /dev/kvm, make a VM with memory and one
 * vCPU, take one exit. It then prints the byte that the guest wrote.
 *
 * usage: floor MEMORY-IN-MIB [hold] [irqchip]
 *
 * hold: wait for a signal at the end. irqchip: add the interrupt controllers and
 * the timer of a PC, which KVM takes a while to make and every kernel needs.
 */
#include <fcntl.h>
#include <linux/kvm.h>
#include <stdlib.h>
#include <string.h>
#include <sys/ioctl.h>
#include <sys/mman.h>
#include <unistd.h>

/* mov dx, 0x3f8; mov al, 2; out dx, al; hlt, in 16-bit code */
static const unsigned char code[] = {0xBA, 0xF8, 0x03, 0xB0, 0x02, 0xEE, 0xF4};

#define TRY(x, status) do { if ((long)(x) < 0) _exit(status); } while (0)

int main(int argc, char **argv)
{
	size_t size = (size_t)(argc > 1 ? atoi(argv[1]) : 1) << 20;
	int kvm, vm, cpu, n, i, hold = 0, irqchip = 0;
	struct kvm_pit_config pit = {0};
	unsigned char *mem;
	struct kvm_run *run;
	struct kvm_sregs s;
	struct kvm_regs r;

	for (i = 2; i < argc; i++) {
		hold |= !strcmp(argv[i], "hold");
		irqchip |= !strcmp(argv[i], "irqchip");
	}
	TRY(kvm = open("/dev/kvm", O_RDWR | O_CLOEXEC), 10);
	TRY(vm = ioctl(kvm, KVM_CREATE_VM, 0), 11);
	mem = mmap(0, size, PROT_READ | PROT_WRITE, MAP_SHARED | MAP_ANONYMOUS | MAP_NORESERVE, -1, 0);
	if (mem == MAP_FAILED)
		_exit(12);
	memcpy(mem, code, sizeof code);
	struct kvm_userspace_memory_region m = {.memory_size = size, .userspace_addr = (unsigned long)mem};
	TRY(ioctl(vm, KVM_SET_USER_MEMORY_REGION, &m), 13);
	if (irqchip) {
		TRY(ioctl(vm, KVM_CREATE_IRQCHIP, 0), 23);
		TRY(ioctl(vm, KVM_CREATE_PIT2, &pit), 24);
	}
	TRY(cpu = ioctl(vm, KVM_CREATE_VCPU, 0), 14);
	TRY(n = ioctl(kvm, KVM_GET_VCPU_MMAP_SIZE, 0), 15);
	run = mmap(0, n, PROT_READ | PROT_WRITE, MAP_SHARED, cpu, 0);
	if (run == MAP_FAILED)
		_exit(16);
	TRY(ioctl(cpu, KVM_GET_SREGS, &s), 17);
	s.cs.base = s.cs.selector = 0;
	TRY(ioctl(cpu, KVM_SET_SREGS, &s), 18);
	memset(&r, 0, sizeof r);
	r.rflags = 2;
	TRY(ioctl(cpu, KVM_SET_REGS, &r), 19);
	TRY(ioctl(cpu, KVM_RUN, 0), 20);
	if (run->exit_reason != KVM_EXIT_IO || run->io.port != 0x3F8)
		_exit(21);
	if (write(1, (char *)run + run->io.data_offset, 1) != 1)
		_exit(22);
	if (hold)
		pause();
	_exit(0);
}
