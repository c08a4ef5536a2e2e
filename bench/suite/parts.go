package suite

import (
	"context"
	"errors"
	"fmt"
	"path/filepath"
	"slices"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
	"github.com/smolvmm/smolvmm/bench/suite/disk"
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
	boot.Program(r.set, r.set.Program.Stripped)
	return errors.Join(r.servicePart(ctx), r.phasesPart(ctx))
}

func (r *runner) memoryPart(ctx context.Context) error {
	subjects, absent := boot.Find(r.dir, r.Program, r.Against)
	r.absent(absent...)
	report, err := r.starts(ctx, boot.With(subjects, r.Program))
	if err != nil {
		return err
	}
	report.Memory(r.set)
	return r.growthPart(ctx)
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

func (r *runner) diskPart(ctx context.Context) error {
	kernel, image := filepath.Join(r.dir, "guest.elf"), filepath.Join(r.dir, "disk.img")
	if err := errors.Join(demoguest.Write(kernel), disk.Image(image)); err != nil {
		return err
	}
	subjects, absent := disk.Subjects(r.Program, slices.Contains(r.Against, "qemu"))
	r.absent(absent...)
	if n := disk.Measure(ctx, r.set, subjects, disk.Loads(r.Operations), r.rounds, kernel, image, r.Notes, r.Progress); n > 0 {
		r.broken = append(r.broken, fmt.Errorf("disk: %d runs of smolvmm failed: the table of failures has the first", n))
	}
	// 1.0 of QEMU's at qd 1 and 32.
	for _, id := range []string{"read-qd1-throughput", "read-qd32-throughput", "write-qd1-throughput", "write-qd32-throughput", "random-read-qd1-iops", "random-read-qd32-iops", "random-write-qd1-iops", "random-write-qd32-iops"} {
		if f := r.set.Figure("disk/" + id); f != nil && f.Of(disk.QEMU) != nil {
			// A bound that must not be passed: QEMU's in parts of ours.
			if i, ok := f.Of(disk.QEMU).Ratios[disk.Ours]; ok {
				r.set.AddGoal("disk "+id+": QEMU's, of smolvmm's", 1, "", i, f.Of(disk.Ours).Summary.N)
			}
		}
	}
	return nil
}
