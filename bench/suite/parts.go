package suite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
	"github.com/smolvmm/smolvmm/bench/suite/network"
)

// starts measures starts, for their times or for their memory.
func (r *runner) starts(ctx context.Context, subjects []boot.Subject) (*boot.Report, error) {
	o := boot.Options{
		Rounds: r.rounds, Warm: 2, BootRounds: r.rounds, MiB: r.MiB, Kernel: r.Kernel, Disk: r.Disk, Cmdline: r.Cmdline, Until: r.Until,
		QEMU: "qemu-system-x86_64", Quiet: r.Quiet, Progress: r.Progress,
	}
	if err := o.FindKernel(ctx, r.dir, false, r.Notes); err != nil {
		return nil, fmt.Errorf("the full kernel: %w (-kernel none does without; -disk names a root image)", err)
	}
	report, err := boot.Measure(ctx, &o, subjects, nil, r.Notes)
	if err == nil {
		r.set.Host.QEMU = report.Host.QEMU
		if report.Broken {
			r.broken = append(r.broken, errors.New("starts of smolvmm failed: the table of failures has the first"))
		}
	}
	return report, err
}

func (r *runner) bootPart(ctx context.Context) error {
	subjects, absent := boot.Find(r.dir, r.Program, r.Against)
	r.absent(absent...)
	report, err := r.starts(ctx, subjects)
	if err != nil {
		return err
	}
	report.Starts(r.set)
	report.Bars(r.set)
	return nil
}

func (r *runner) memoryPart(ctx context.Context) error {
	subjects, absent := boot.Find(r.dir, r.Program, r.Against)
	r.absent(absent...)
	report, err := r.starts(ctx, boot.With(subjects, r.Program))
	if err != nil {
		return err
	}
	report.Memory(r.set)
	return nil
}

func (r *runner) netPart(ctx context.Context) error {
	kernel := filepath.Join(r.dir, "guest.elf")
	if err := demoguest.Write(kernel); err != nil {
		return err
	}
	subjects, absent := network.Subjects(r.Program, "qemu-system-x86_64", "passt")
	if !slices.Contains(r.Against, "qemu") {
		subjects, absent = subjects[:1], nil
	}
	r.absent(absent...)
	var all []network.Series
	for _, l := range network.List(r.Loads, r.Megabytes, r.Count) {
		all = append(all, network.InTurn(ctx, l, subjects, r.rounds, kernel, r.Notes, r.Progress)...)
	}
	network.Into(r.set, all)
	for _, s := range all {
		if s.Subject == network.Ours && s.Failed > 0 {
			r.broken = append(r.broken, fmt.Errorf("net: %d runs of smolvmm failed, the first: %s", s.Failed, s.Failure))
		}
	}
	return nil
}

// Loads are the words for what the network is loaded with.
func Loads() (out []string) {
	for _, k := range network.Kinds() {
		out = append(out, string(k))
	}
	return out
}
