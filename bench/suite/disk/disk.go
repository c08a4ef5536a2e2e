// Package disk puts the same guest with the same load on a disk behind several
// monitors, in turn.
package disk

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
	"github.com/smolvmm/smolvmm/bench/internal/figures"
)

// Load is what the guest does with its disk: the demo guest's blkbench.
type Load struct {
	Op    string // r, w: in sequence; rr, rw: at random places
	Depth int    // requests at once
	Block int    // bytes of each
	Count int
}

func (l Load) mode() string {
	return fmt.Sprintf("blkbench=%d,%d,%s,%d,lax", l.Depth, l.Block, l.Op, l.Count)
}

func (l Load) name() string {
	return map[string]string{"r": "read", "w": "write", "rr": "random-read", "rw": "random-write"}[l.Op]
}

// sequential is the size of a request in sequence, random at random places, in bytes.
const (
	sequential = 128 << 10
	random     = 4 << 10
)

// Depths are how many requests are under way at once.
func Depths() []int { return []int{1, 2, 4, 8, 16, 32, 64} }

// Loads are all, with so many requests each.
func Loads(count int) (out []Load) {
	for _, op := range []string{"r", "w"} {
		for _, depth := range []int{1, 32} {
			out = append(out, Load{op, depth, sequential, count})
		}
	}
	for _, op := range []string{"rr", "rw"} {
		for _, depth := range Depths() {
			out = append(out, Load{op, depth, random, count})
		}
	}
	return out
}

// Subject is a monitor with a virtio-mmio disk.
type Subject struct {
	Name   string
	argv   func(kernel, disk, mode string) []string
	status int // with which it ends when the guest ends with 0
}

// Argv is the command line for a kernel with a mode of the demo guest's on a disk.
func (s Subject) Argv(kernel, disk, mode string) []string { return s.argv(kernel, disk, mode) }

// Ours is the one that all is about.
const Ours = figures.Ours

// QEMU is the peer's name in tables.
const QEMU = "QEMU microvm"

// quoted has the commas that both take for the end of a name.
func quoted(file string) string { return strings.ReplaceAll(file, ",", ",,") }

// Subjects are smolvmm, and QEMU where it is asked for and there: both read and
// write through the host's page cache, QEMU with its own threads, as it does where
// nothing else is said.
func Subjects(smolvmm string, withQEMU bool) (out []Subject, absent []string) {
	out = []Subject{{Name: Ours, argv: func(kernel, disk, mode string) []string {
		return []string{smolvmm, "-kernel", kernel, "-m", "64", "-net", "none", "-append", "demo=" + mode, "-disk", quoted(disk)}
	}}}
	if !withQEMU {
		return out, nil
	}
	program, err := exec.LookPath("qemu-system-x86_64")
	if err != nil {
		return out, []string{QEMU + ": no qemu-system-x86_64 on PATH"}
	}
	// isa-debug-exit at the port where the guest ends its machine gives 2·0 + 1.
	return append(out, Subject{Name: QEMU, status: 1, argv: func(kernel, disk, mode string) []string {
		return []string{
			program, "-M", "microvm,accel=kvm,acpi=off,pic=off,pit=on,rtc=on,x-option-roms=off,auto-kernel-cmdline=on", "-cpu", "host,-arch-capabilities",
			"-m", "64", "-nodefaults", "-no-user-config", "-display", "none", "-no-reboot", "-serial", "stdio", "-kernel", kernel, "-append", "demo=" + mode,
			"-device", "isa-debug-exit,iobase=0x501,iosize=1", "-global", "virtio-mmio.force-legacy=false",
			"-drive", "if=none,id=d,format=raw,file=" + quoted(disk), "-device", "virtio-blk-device,drive=d",
		}
	}}), nil
}

// imageSize is the disk's, in bytes: it stays in the page cache, so that the
// monitors are measured and not the host's disk.
const imageSize = 64 << 20

// Image makes the disk: noise, since holes would be read without any disk.
func Image(name string) error {
	f, err := os.Create(name)
	if err != nil {
		return err
	}
	_, err = io.CopyN(f, rand.NewChaCha8([32]byte{1}), imageSize)
	return errors.Join(err, f.Sync(), f.Close())
}

// sample is what one run showed.
type sample struct{ iops, mibs, latency float64 } // a second, MiB a second, µs

// figuresOf reads the guest's report of a load.
func figuresOf(l Load, report string) (s sample, err error) {
	us, err := demoguest.Field(report, "us")
	if err != nil {
		return s, err
	}
	count, err := demoguest.Field(report, "count")
	if err != nil {
		return s, err
	}
	if us <= 0 || int(count) != l.Count {
		return s, fmt.Errorf("%v requests in %v µs, not %d: %q", count, us, l.Count, report)
	}
	s.iops = count / us * 1e6
	s.mibs = s.iops * float64(l.Block) / (1 << 20)
	s.latency = us / count * float64(min(l.Depth, l.Count)) // Little's law
	return s, nil
}

// limit is the longest that one run may take.
const limit = 2 * time.Minute

// once runs one machine under one load.
func once(ctx context.Context, s Subject, l Load, kernel, disk string) (sample, error) {
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	argv := s.argv(kernel, disk, l.mode())
	var console, stderr bytes.Buffer
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.Stdout, c.Stderr = &console, &stderr
	err := c.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) {
		return sample{}, err
	}
	report := demoguest.Report(console.Bytes(), "blkbench")
	if got := c.ProcessState.ExitCode(); got != s.status || report == "" {
		const most = 300
		said := append(console.Bytes(), stderr.Bytes()...)
		return sample{}, fmt.Errorf("%s ended with %v, and printed %q", filepath.Base(c.Path), c.ProcessState, said[max(0, len(said)-most):])
	}
	return figuresOf(l, report)
}

// Measure runs every load with every subject in turn, after a round that does not
// count, and puts figures and curves into a set. It gives how many runs of smolvmm's
// failed.
func Measure(ctx context.Context, to *figures.Set, subjects []Subject, loads []Load, rounds int, kernel, disk string, notes io.Writer, progress func(what string, done, total int)) (failed int) {
	curves := map[string]*figures.Curve{}
	var order []string
	for _, l := range loads {
		what := fmt.Sprintf("%s, %d KiB, %d at once", l.name(), l.Block>>10, l.Depth)
		id := fmt.Sprintf("disk/%s-qd%d", l.name(), l.Depth)
		iops := figures.Figure{ID: id + "-iops", What: what + ": requests a second", Unit: "1/s", Better: figures.More}
		mibs := figures.Figure{ID: id + "-throughput", What: what + ": throughput", Unit: "MiB/s", Better: figures.More}
		lat := figures.Figure{ID: id + "-latency", What: what + ": mean latency in the guest", Unit: "µs", Better: figures.Less}
		all := []*figures.Figure{&iops, &mibs, &lat}
		for _, f := range all {
			for _, s := range subjects {
				f.Series = append(f.Series, figures.Series{Subject: s.Name})
			}
		}
		for round := range rounds + 1 {
			for i := range subjects {
				at := (i + round) % len(subjects)
				s, err := once(ctx, subjects[at], l, kernel, disk)
				if ctx.Err() != nil {
					return failed
				}
				if err != nil {
					s = sample{math.NaN(), math.NaN(), math.NaN()}
					fmt.Fprintf(notes, "disk: %s: %s: %v\n", what, subjects[at].Name, err)
					if subjects[at].Name == Ours {
						failed++
					}
				}
				for k, v := range []float64{s.iops, s.mibs, s.latency} {
					x := &all[k].Series[at]
					if err != nil {
						if x.Failed++; x.Failure == "" {
							x.Failure = err.Error()
						}
					}
					if round > 0 {
						x.Values = append(x.Values, v)
					}
				}
			}
			if progress != nil {
				progress("disk, "+what, round+1, rounds+1)
			}
		}
		if l.Block >= sequential {
			to.Add(mibs)
		} else {
			to.Add(iops)
		}
		to.Add(lat)
		if l.Block < sequential {
			c := curves[l.Op]
			if c == nil {
				c = &figures.Curve{ID: "disk/" + l.name(), Title: l.name() + ", 4 KiB, medians", X: "requests at once", Y: "requests a second"}
				curves[l.Op] = c
				order = append(order, l.Op)
				for _, s := range subjects {
					c.Lines = append(c.Lines, figures.Line{Name: s.Name})
				}
			}
			if f := to.Figure(iops.ID); f != nil {
				for i := range c.Lines {
					if x := f.Of(c.Lines[i].Name); x != nil && x.Summary.N > 0 {
						c.Lines[i].Points = append(c.Lines[i].Points, [2]float64{float64(l.Depth), x.Summary.Median})
					}
				}
			}
		}
	}
	for _, op := range order {
		to.Curves = append(to.Curves, *curves[op])
	}
	return failed
}
