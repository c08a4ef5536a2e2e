// Package runvm executes the RUN steps of a build in machines: the tree becomes a
// file system on a disk, NetBSD boots from it with smolinit as its first process,
// smolinit runs the command and sends back what the command has changed.
//
// The machine is not trusted. What it sends is an archive like any other; all it
// can do is to give the step a result that the step's command could have made.
package runvm

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"strings"

	"github.com/smolvmm/smolvmm/builder"
	"github.com/smolvmm/smolvmm/builder/blob"
	"github.com/smolvmm/smolvmm/builder/image"
	"github.com/smolvmm/smolvmm/builder/runvm/steplog"
	"github.com/smolvmm/smolvmm/builder/tree"
	"github.com/smolvmm/smolvmm/vmm"
)

// Defaults of Options' zero values.
const (
	DefaultMemory = 512 << 20 // bytes: compilers are steps, too
	DefaultFree   = 8 << 30   // bytes: it costs the host what is written, not what is there
	DefaultOutput = 64 << 20  // bytes: a build's log that people may still read
)

// Options say what the machines are made of.
type Options struct {
	// Kernel gives NetBSD's kernel, when the first step runs.
	Kernel func(ctx context.Context) (vmm.File, error)
	// Init gives smolinit for netbsd/amd64.
	Init func(ctx context.Context) (tree.Content, error)
	// Blobs takes the contents of what the steps write.
	Blobs *blob.Store
	// Temp is the folder for the disks, which have no name there; "" is the
	// system's. A disk takes what the tree and the step have written.
	Temp string

	Memory uint64 // bytes of RAM; 0 is DefaultMemory
	CPUs   int    // 0 is one
	Free   int64  // bytes that a step finds free on its disk; 0 is DefaultFree
	Output int64  // bytes of output that are kept; 0 is DefaultOutput

	// Network gives the network of a step that may have one; nil: there is none.
	Network func(ctx context.Context) (Network, error)
	// Cmdline is appended to the kernel's.
	Cmdline string
	// Log takes what the monitors have to say; nil discards it.
	Log *slog.Logger
}

// Network is a machine's interfaces, for one step.
type Network struct {
	Nets  []vmm.Net
	Close func() error // when the machine is gone
}

// Runner is a builder.Runner.
type Runner struct{ o Options }

// New gives a Runner.
func New(o Options) (*Runner, error) {
	if o.Kernel == nil || o.Init == nil || o.Blobs == nil {
		return nil, errors.New("running a step needs a kernel, smolinit and a store for contents")
	}
	if o.Memory == 0 {
		o.Memory = DefaultMemory
	}
	if o.Free == 0 {
		o.Free = DefaultFree
	}
	if o.Output == 0 {
		o.Output = DefaultOutput
	}
	if o.Log == nil {
		o.Log = slog.New(slog.DiscardHandler)
	}
	return &Runner{o}, nil
}

// ErrTimeout is the end of a step that took longer than it may.
var ErrTimeout = errors.New("the step took longer than it may")

// MachineError says that a machine did not do what a step's machine does: its
// kernel failed, or it was ended from within.
type MachineError struct {
	Text    string
	Console string // what the kernel said last, in lines of printable text
}

func (e *MachineError) Error() string {
	if last := lastLine(e.Console); last != "" {
		return e.Text + "; its console ends with: " + last
	}
	return e.Text
}

// FullError says that the step's disk had no room left.
type FullError struct {
	Free   int64 // bytes that were free in the beginning
	Status int   // the command's; a command may go on as if nothing were amiss
}

func (e *FullError) Error() string {
	return fmt.Sprintf("the step's disk is full: it had %d MiB free (the command ended with status %d)", e.Free>>20, e.Status)
}

// Run executes a step: builder.Runner. A command that failed is a
// *builder.ExitError.
func (r *Runner) Run(ctx context.Context, step builder.RunStep) (*tree.Tree, error) {
	if step.Timeout > 0 {
		var cancel context.CancelFunc
		ctx, cancel = context.WithTimeoutCause(ctx, step.Timeout, fmt.Errorf("%w: %v", ErrTimeout, step.Timeout))
		defer cancel()
	}
	out, err := r.run(ctx, step)
	if err != nil && ctx.Err() != nil {
		return nil, context.Cause(ctx)
	}
	return out, err
}

func (r *Runner) run(ctx context.Context, step builder.RunStep) (_ *tree.Tree, err error) {
	kernel, err := r.o.Kernel(ctx)
	if err != nil {
		return nil, err
	}
	init, err := r.o.Init(ctx)
	if err != nil {
		return nil, err
	}
	boot, err := bootable(step.Root, init)
	if err != nil {
		return nil, err
	}
	root, err := unnamed(r.o.Temp)
	if err != nil {
		return nil, err
	}
	defer root.close()
	info, err := image.Build(ctx, root.guest, boot.tree, image.Options{Minimize: true, Free: r.o.Free, FreeInodes: freeInodes})
	if err != nil {
		return nil, fmt.Errorf("the step's disk: %w", err)
	}
	log, err := unnamed(r.o.Temp)
	if err != nil {
		return nil, err
	}
	defer log.close()
	// All that the file system can hold, and an archive's headers around it.
	size := (r.o.Output + info.Size + info.FS.Inodes*entryOverhead + logSpare) &^ (steplog.Sector - 1)
	if err := log.guest.Truncate(size); err != nil {
		return nil, err
	}
	m := &machine{
		cfg: vmm.Config{
			Kernel: kernel, Cmdline: strings.TrimSpace("root=ld0a console=com -z " + r.o.Cmdline),
			Memory: r.o.Memory, CPUs: r.o.CPUs, Log: r.o.Log,
			Disks: []vmm.Disk{{File: root.guest, Path: "the step's root", Serial: "root"}, {File: log.guest, Path: "the step's log", Serial: "log"}},
		},
		log: log.own, output: step.Output, most: r.o.Output,
	}
	if step.Network && r.o.Network != nil {
		n, nerr := r.o.Network(ctx)
		if nerr != nil {
			return nil, nerr
		}
		if n.Close != nil {
			defer func() { err = errors.Join(err, n.Close()) }()
		}
		m.cfg.Nets = n.Nets
	}
	if m.cfg.Items, err = items(step, boot, size, r.o.Output); err != nil {
		return nil, err
	}
	said, err := m.run(ctx)
	if err != nil {
		return nil, err
	}
	return r.outcome(ctx, step, said, info.FS.Free)
}

const (
	// entryOverhead is what an archive has for an entry beside its contents, names
	// of usual length: a pax header with its block and the entry's own.
	entryOverhead = 4 * 512
	// logSpare is for what is longer, and for the list of what is gone.
	logSpare = 64 << 20
	// freeInodes is the least number of files that a step can add.
	freeInodes = 100_000
)

// outcome makes the step's result of what its machine said.
func (r *Runner) outcome(ctx context.Context, step builder.RunStep, s *said, free int64) (*tree.Tree, error) {
	if n := s.result.Lost; n > 0 && step.Output != nil {
		if _, err := fmt.Fprintf(step.Output, "\n[%d more bytes of output are left out]\n", n); err != nil {
			return nil, err
		}
	}
	switch {
	case s.result.Error != "":
		if s.full {
			return nil, &FullError{free, s.result.Status}
		}
		return nil, &MachineError{"smolinit: " + printable(s.result.Error), s.console}
	case s.full:
		return nil, &FullError{free, s.result.Status}
	case s.result.Start != "":
		if step.Output != nil {
			if _, err := fmt.Fprintf(step.Output, "%s\n", printable(s.result.Start)); err != nil {
				return nil, err
			}
		}
	}
	if s.result.Status != 0 {
		return nil, &builder.ExitError{Status: s.result.Status}
	}
	t := step.Root.Clone()
	if err := s.apply(ctx, t, r.o.Blobs); err != nil {
		return nil, err
	}
	for _, name := range s.result.Skipped {
		if step.Output != nil {
			if _, err := fmt.Fprintf(step.Output, "[/%s is a socket: images have none]\n", printable(name)); err != nil {
				return nil, err
			}
		}
	}
	return t, nil
}

// temp is a file that is gone with its last descriptor, however this process ends.
type temp struct {
	guest *os.File // the machine's, which closes it
	own   *os.File // for reading
}

func (t *temp) close() {
	t.own.Close()
	t.guest.Close() // where no machine has: a second time is nothing
}

func unnamed(dir string) (*temp, error) {
	f, err := os.CreateTemp(dir, ".smolvmm-step-*")
	if err != nil {
		return nil, err
	}
	own, err := os.Open(f.Name())
	if err == nil {
		err = os.Remove(f.Name())
	} else {
		err = errors.Join(err, os.Remove(f.Name()))
	}
	if err != nil {
		f.Close()
		own.Close()
		return nil, err
	}
	return &temp{f, own}, nil
}

// printable makes one line of what a guest said.
func printable(s string) string {
	s = strings.Map(func(r rune) rune {
		if r < ' ' || r == 0x7f || r >= 0x80 && r < 0xa0 {
			return ' '
		}
		return r
	}, strings.ToValidUTF8(s, "?"))
	return strings.TrimSpace(s[:min(len(s), 1000)])
}

func lastLine(s string) string {
	s = strings.TrimSpace(s)
	return s[strings.LastIndexByte(s, '\n')+1:]
}

var _ builder.Runner = (*Runner)(nil)
