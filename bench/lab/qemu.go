package main

import (
	"fmt"
	"strconv"
	"strings"
)

// vm is what QEMU is told; the descriptors are those of the child.
type vm struct {
	kernel     string
	initrd     string
	portFD     int // connected socket of the lab's port
	memory     int // MiB
	cpus       int
	drives     []string
	kernelArgs string
}

// guestCPU is a CPU with nested virtualization that QEMU emulates well.
const guestCPU = "EPYC-v4,+svm,+npt"

// defaultCPUs is one because QEMU 10.0 emulates SVM truly for one CPU only. An
// interrupt that VMRUN injects is left noted as an exception still to be
// delivered, and it is, a second time, if the emulator's loop is left before
// anything else happens, which another CPU's turn or kick brings about; and
// VMRUN and #VMEXIT change a CPU's pending interrupts without the lock that
// other CPUs' threads set them under. Guests hung or took triple faults: with
// two CPUs and a thread for each, 6 of 106 runs of the hostile cases; with both
// on one thread, every boot of NetBSD.
const defaultCPUs = 1

// args is QEMU's command line.
func (v *vm) args() []string {
	a := []string{
		"-nodefaults", "-no-user-config", "-display", "none", "-no-reboot",
		"-machine", "q35,usb=off,smbus=off,sata=off,vmport=off,i8042=off",
		"-accel", "tcg", "-cpu", guestCPU,
		"-smp", strconv.Itoa(v.cpus), "-m", strconv.Itoa(v.memory),
		"-kernel", v.kernel, "-initrd", v.initrd, "-append", v.cmdline(),
		"-chardev", "stdio,id=console,signal=off", "-serial", "chardev:console",
		// One port of a virtio-serial device, number 1: 0 is the console's.
		"-device", "virtio-serial-pci,max_ports=2",
		"-chardev", "socket,id=lab,fd=" + strconv.Itoa(v.portFD),
		"-device", "virtserialport,chardev=lab,nr=1,name=smolvmm.lab",
	}
	for i, d := range v.drives {
		// Writes go to an unlinked temporary file. QEMU's option syntax doubles a comma in a value.
		a = append(a,
			"-drive", fmt.Sprintf("if=none,id=d%d,file=%s,%scache=unsafe,snapshot=on", i, strings.ReplaceAll(d, ",", ",,"), driveFormat(d)),
			"-device", fmt.Sprintf("virtio-blk-pci,drive=d%d", i))
	}
	return a
}

// driveFormat takes a file for raw unless its name says qcow2: probing would let a raw image's contents choose.
func driveFormat(file string) string {
	if strings.HasSuffix(file, ".qcow2") {
		return "format=qcow2,"
	}
	return "format=raw,"
}

// cmdline is the kernel's: quiet on the serial console, a TSC that is not doubted, no mitigations and no self-tests of
// ciphers, which cost most of a second in emulation, and an exit on panic.
func (v *vm) cmdline() string {
	c := "console=ttyS0 quiet tsc=reliable mitigations=off cryptomgr.notests panic=-1"
	if v.kernelArgs != "" {
		c += " " + v.kernelArgs
	}
	return c
}
