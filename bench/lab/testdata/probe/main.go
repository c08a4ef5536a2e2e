// Command probe is what the lab's own boot test runs in the lab: it says what it finds there and ends as it is told.
package main

import (
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// KVM's system ioctls (Linux Documentation/virt/kvm/api.rst, 4.1 and 4.2).
const (
	kvmGetAPIVersion = 0xae00
	kvmCreateVM      = 0xae01
)

func main() {
	exit := flag.Int("exit", 7, "exit status")
	write := flag.String("write", "", "file to write")
	read := flag.String("read", "", "file to read")
	hang := flag.Bool("hang", false, "wait for a signal")
	kill := flag.Bool("kill", false, "end by SIGKILL")
	panicKernel := flag.Bool("panic", false, "make the kernel panic")
	flood := flag.Int("flood", 0, "bytes to write to standard output")
	flag.Parse()
	if *flood > 0 {
		line := []byte("0123456789abcdef0123456789abcdef0123456789abcdef0123456789abcde\n")
		for n := *flood; n > 0; n -= len(line) {
			if _, err := os.Stdout.Write(line[:min(n, len(line))]); err != nil {
				os.Exit(3)
			}
		}
		os.Exit(*exit)
	}
	wd, err := os.Getwd()
	fmt.Println("wd", wd, err)
	fmt.Println("lab", os.Getenv("SMOLVMM_LAB"), "extra", os.Getenv("EXTRA"))
	fmt.Println("kvm", kvm())
	drive, err := os.ReadFile("/dev/vda")
	fmt.Println("drive", len(drive), err == nil)
	if *read != "" {
		b, err := os.ReadFile(*read)
		fmt.Println("read", len(b), err == nil)
	}
	fmt.Fprintln(os.Stderr, "on the other stream")
	if *write != "" {
		if err := os.WriteFile(*write, []byte("from the lab\n"), 0o644); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(3)
		}
	}
	switch {
	case *hang:
		c := make(chan os.Signal, 1)
		signal.Notify(c, syscall.SIGINT, syscall.SIGQUIT)
		fmt.Println("waiting")
		fmt.Println("got", <-c)
	case *kill:
		_ = syscall.Kill(os.Getpid(), syscall.SIGKILL)
		time.Sleep(time.Hour)
	case *panicKernel:
		_ = os.WriteFile("/proc/sysrq-trigger", []byte("c"), 0)
		time.Sleep(time.Hour)
	}
	fmt.Println("pivot", pivot())
	os.Exit(*exit)
}

// kvm opens /dev/kvm and makes a machine.
func kvm() string {
	f, err := os.OpenFile("/dev/kvm", os.O_RDWR, 0)
	if err != nil {
		return err.Error()
	}
	defer f.Close()
	v, err := unix.IoctlRetInt(int(f.Fd()), kvmGetAPIVersion)
	if err != nil {
		return err.Error()
	}
	vm, err := unix.IoctlRetInt(int(f.Fd()), kvmCreateVM)
	if err != nil {
		return err.Error()
	}
	_ = unix.Close(vm)
	return fmt.Sprintf("version %d, a machine", v)
}

// pivot says whether the root is an ordinary mount: in an initramfs pivot_root fails.
func pivot() string {
	if err := unix.Unshare(unix.CLONE_NEWNS); err != nil {
		return err.Error()
	}
	if err := os.MkdirAll("/tmp/newroot/old", 0o755); err != nil {
		return err.Error()
	}
	if err := unix.Mount("/tmp/newroot", "/tmp/newroot", "", unix.MS_BIND, ""); err != nil {
		return err.Error()
	}
	if err := unix.PivotRoot("/tmp/newroot", "/tmp/newroot/old"); err != nil {
		return err.Error()
	}
	return "works"
}
