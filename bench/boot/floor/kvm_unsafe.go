package main

import (
	"syscall"
	"unsafe"
)

// Requests and exits of linux/kvm.h.
const (
	kvmCreateVM        = 0xAE01
	kvmGetVCPUMmapSize = 0xAE04
	kvmCreateVCPU      = 0xAE41
	kvmSetMemoryRegion = 0x4020AE46
	kvmRun             = 0xAE80
	kvmSetRegs         = 0x4090AE82
	kvmGetSregs        = 0x8138AE83
	kvmSetSregs        = 0x4138AE84
	kvmExitIO          = 2
	portCOM1           = 0x3F8
)

// memoryRegion is struct kvm_userspace_memory_region.
type memoryRegion struct {
	slot, flags     uint32
	gpa, size, addr uint64
}

// Offsets in struct kvm_sregs, struct kvm_regs and struct kvm_run, in bytes.
const (
	sregsSize     = 312
	csBase        = 0
	csSelector    = 12
	regsSize      = 144
	rflagsOffset  = 136
	runExitReason = 8
	runIOPort     = 34
	runIOData     = 40
)

func ioctl(fd int, request, arg uintptr) (int, bool) {
	n, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, arg)
	return int(n), errno == 0
}

func ioctlPtr(fd int, request uintptr, p unsafe.Pointer) bool {
	_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(fd), request, uintptr(p))
	return errno == 0
}

// oneExit runs a VM with size bytes of memory to its first exit, and gives the byte written to COM1, or a status that
// says which step failed.
func oneExit(size int) (b byte, status int) {
	kvm, err := syscall.Open("/dev/kvm", syscall.O_RDWR|syscall.O_CLOEXEC, 0)
	if err != nil {
		return 0, 10
	}
	vm, ok := ioctl(kvm, kvmCreateVM, 0)
	if !ok {
		return 0, 11
	}
	mem, err := syscall.Mmap(-1, 0, size, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED|syscall.MAP_ANON|syscall.MAP_NORESERVE)
	if err != nil {
		return 0, 12
	}
	copy(mem, code)
	m := memoryRegion{size: uint64(size), addr: uint64(uintptr(unsafe.Pointer(&mem[0])))}
	if !ioctlPtr(vm, kvmSetMemoryRegion, unsafe.Pointer(&m)) {
		return 0, 13
	}
	cpu, ok := ioctl(vm, kvmCreateVCPU, 0)
	if !ok {
		return 0, 14
	}
	n, ok := ioctl(kvm, kvmGetVCPUMmapSize, 0)
	if !ok {
		return 0, 15
	}
	run, err := syscall.Mmap(cpu, 0, n, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_SHARED)
	if err != nil {
		return 0, 16
	}
	var sregs [sregsSize / 8]uint64
	if !ioctlPtr(cpu, kvmGetSregs, unsafe.Pointer(&sregs)) {
		return 0, 17
	}
	cs := (*[sregsSize]byte)(unsafe.Pointer(&sregs))
	clear(cs[csBase : csBase+8])
	clear(cs[csSelector : csSelector+2])
	if !ioctlPtr(cpu, kvmSetSregs, unsafe.Pointer(&sregs)) {
		return 0, 18
	}
	var regs [regsSize / 8]uint64
	regs[rflagsOffset/8] = 2
	if !ioctlPtr(cpu, kvmSetRegs, unsafe.Pointer(&regs)) {
		return 0, 19
	}
	for {
		_, _, errno := syscall.Syscall(syscall.SYS_IOCTL, uintptr(cpu), kvmRun, 0)
		if errno == 0 {
			break
		}
		// Go's own signals to the thread end KVM_RUN.
		if errno != syscall.EINTR {
			return 0, 20
		}
	}
	at := *(*uint64)(unsafe.Pointer(&run[runIOData]))
	reason, port := *(*uint32)(unsafe.Pointer(&run[runExitReason])), *(*uint16)(unsafe.Pointer(&run[runIOPort]))
	if reason != kvmExitIO || port != portCOM1 || at >= uint64(len(run)) {
		return 0, 21
	}
	return run[at], 0
}

// pause waits for a signal.
func pause() { syscall.Syscall(syscall.SYS_PAUSE, 0, 0, 0) }
