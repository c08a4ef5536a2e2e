package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	host "github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/linux"
	"github.com/smolvmm/smolvmm/bench/netbsd"
)

// parts is what was made for a run.
type parts struct{ lab, self string }

// build makes the lab's runner, which knows where the kernel is, this program, and
// the files of the guests in dir.
func build(ctx context.Context, dir string) (p parts, err error) {
	if p.lab, err = netbsd.Lab(ctx, dir); err != nil {
		return p, err
	}
	vmlinux, modules, err := linux.Kernel(ctx, p.lab)
	if err != nil {
		return p, err
	}
	p.self = filepath.Join(dir, "vsock")
	guest := filepath.Join(dir, "guest")
	for file, pkg := range map[string]string{p.self: "bench/vsock", guest: "bench/linux/guest", filepath.Join(dir, fileOurs): "cmd/smolvmm"} {
		if err := netbsd.Program(ctx, file, pkg); err != nil {
			return p, err
		}
	}
	if err := os.Symlink(vmlinux, filepath.Join(dir, fileKernel)); err != nil {
		return p, err
	}
	f, err := os.Create(filepath.Join(dir, fileInitrd))
	if err != nil {
		return p, err
	}
	return p, errors.Join(linux.Initramfs(f, map[string]string{"init": guest}, modules, "virtio_mmio", "vmw_vsock_virtio_transport"), f.Close())
}

// Where the lab's run finds things, and its memory: what is put in is there twice
// while it boots, and each guest has some of it.
const (
	labFiles  = "/vsock"
	labJSON   = "/tmp/vsock.json"
	labMemory = 3072 // MiB
)

// inLab runs this program in the lab with the same flags.
func inLab(ctx context.Context, o *options, out, diag io.Writer) error {
	dir, err := os.MkdirTemp("", "smolvmm-vsock-")
	if err != nil {
		return err
	}
	defer os.RemoveAll(dir)
	p, err := build(ctx, dir)
	if err != nil {
		return err
	}
	args := []string{"-m", strconv.Itoa(labMemory), "-timeout", (2*bootLimit + time.Duration(o.warm+o.n)*roundLimit).String()}
	for _, name := range []string{fileOurs, fileKernel, fileInitrd} {
		file, err := filepath.EvalSymlinks(filepath.Join(dir, name))
		if err != nil {
			return err
		}
		args = append(args, "-file", file+":"+labFiles+"/"+name)
	}
	if program, err := exec.LookPath("firecracker"); err == nil {
		args = append(args, "-with", program)
	}
	if o.json != "" {
		args = append(args, "-out", labJSON+":"+o.json)
	}
	cmd := exec.CommandContext(ctx, p.lab, append(append(args, p.self), o.inside()...)...)
	cmd.Cancel, cmd.WaitDelay = func() error { return cmd.Process.Signal(os.Interrupt) }, time.Minute
	cmd.Stdout, cmd.Stderr = out, diag
	// The lab takes the working directory along.
	cmd.Dir = filepath.Join(dir, "empty")
	if err := os.Mkdir(cmd.Dir, 0o700); err != nil {
		return err
	}
	before, err := host.ReadUsage()
	if err != nil {
		return err
	}
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("in the lab: %w", err)
	}
	after, err := host.ReadUsage()
	if err != nil {
		return err
	}
	// Seen from inside, a lab that does not get the processor is only slow.
	if busy := host.Others(before, after); busy > host.NoisyOthers {
		fmt.Fprintf(out, "\nAround the lab, others used %.2f of a processor while this measured: the figures are worse than they would be, and the ratios uncertain.\n", busy)
	}
	return nil
}

// inside are the flags of the run in the lab.
func (o *options) inside() []string {
	args := []string{"-linux", "-files", labFiles, "-n", strconv.Itoa(o.n), "-warm", strconv.Itoa(o.warm), "-mb", strconv.Itoa(o.mb), "-trips", strconv.Itoa(o.trips)}
	if o.json != "" {
		args = append(args, "-json", labJSON)
	}
	return args
}
