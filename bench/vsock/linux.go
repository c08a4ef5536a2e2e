package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"slices"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	host "github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/linux/streams"
)

// Limits for a boot, which an emulated machine makes long, and for what one round
// asks of one machine.
const (
	bootLimit  = 3 * time.Minute
	roundLimit = 2 * time.Minute
)

// quantity is something that a round measures, of a connection to a port.
type quantity struct {
	id, what, unit string
	better         figures.Better
	port           uint32
	measure        func(o *options, c io.ReadWriter) (float64, error)
}

func quantities() []quantity {
	return []quantity{
		{"vsock/to-host", "a stream from a Linux guest to the host", "Gbit/s", figures.More, streams.SourcePort, stream(streams.Get)},
		{"vsock/to-guest", "a stream from the host to a Linux guest", "Gbit/s", figures.More, streams.SinkPort, stream(streams.Put)},
		{"vsock/round-trip", "a byte to a Linux guest's program and back", "µs", figures.Less, streams.EchoPort, trip},
	}
}

func stream(run func(io.ReadWriter, uint64) (time.Duration, error)) func(*options, io.ReadWriter) (float64, error) {
	return func(o *options, c io.ReadWriter) (float64, error) {
		n := uint64(o.mb) * 1e6
		took, err := run(c, n)
		if err != nil {
			return 0, err
		}
		return float64(n) * 8 / float64(took.Nanoseconds()), nil
	}
}

// trip is a round's median.
func trip(o *options, c io.ReadWriter) (float64, error) {
	all, err := streams.Trips(c, o.trips)
	if err != nil {
		return 0, err
	}
	var µs []float64
	for _, d := range all {
		µs = append(µs, float64(d.Nanoseconds())/1000)
	}
	slices.Sort(µs)
	return stats.Quantile(µs, 0.5), nil
}

// subject is a machine to measure: dial reaches a port of its guest.
type subject struct {
	name string
	dial func(port uint32) (io.ReadWriteCloser, error)
}

// measure asks all subjects in turn, round by round. A subject that fails once has
// failed: it is asked no more.
func measure(ctx context.Context, o *options, subjects []subject, progress io.Writer) ([]figures.Figure, error) {
	qs := quantities()
	out := make([]figures.Figure, len(qs))
	for i, q := range qs {
		out[i] = figures.Figure{ID: q.id, What: q.what, Unit: q.unit, Better: q.better}
		for _, s := range subjects {
			out[i].Series = append(out[i].Series, figures.Series{Subject: s.name})
		}
	}
	broken := make([]bool, len(subjects))
	for round := range o.warm + o.n {
		if err := ctx.Err(); err != nil {
			return nil, err
		}
		fmt.Fprintf(progress, "round %d of %d\n", round+1, o.warm+o.n)
		for i, q := range qs {
			for j, s := range subjects {
				v := math.NaN()
				if !broken[j] {
					var err error
					if v, err = one(o, q, s); err != nil {
						x := &out[i].Series[j]
						broken[j], v, x.Failed, x.Failure = true, math.NaN(), 1, err.Error()
					}
				}
				if round >= o.warm {
					out[i].Series[j].Values = append(out[i].Series[j].Values, v)
				}
			}
		}
	}
	return out, nil
}

func one(o *options, q quantity, s subject) (float64, error) {
	c, err := s.dial(q.port)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	return q.measure(o, c)
}

// guests boots the same kernel under each monitor and measures them.
func guests(ctx context.Context, o *options, out, diag io.Writer) error {
	files := o.files
	if files == "" {
		tmp, err := os.MkdirTemp("", "smolvmm-vsock-")
		if err != nil {
			return err
		}
		defer os.RemoveAll(tmp)
		if _, err := build(ctx, tmp); err != nil {
			return err
		}
		files = tmp
	}
	set := &figures.Set{When: time.Now().UTC(), Host: host.This(), Notes: []string{
		fmt.Sprintf("each round sends %d MB each way and %d bytes there and back, one after the other, all by connections of their own; the bytes' median counts", o.mb, o.trips),
		"the machines live through all rounds, measured in turn; the one that is not waits, with nothing to do",
	}, Absent: []string{"QEMU's vhost-vsock: its other end is in the host's kernel (module vhost_vsock) and a client of another convention"}}
	monitors := []monitor{{nameOurs, smolvmm}}
	if program, err := exec.LookPath("firecracker"); err == nil {
		monitors = append(monitors, monitor{nameFC, firecracker(program)})
	} else {
		set.Absent = append(set.Absent, nameFC+": it is not on PATH")
	}
	before, err := host.ReadUsage()
	if err != nil {
		return err
	}
	fs, err := booted(ctx, o, files, monitors, set, diag)
	if err != nil {
		return err
	}
	after, err := host.ReadUsage()
	if err != nil {
		return err
	}
	set.Others = host.Others(before, after)
	for _, f := range fs {
		set.Add(f)
	}
	set.Warnings = set.Doubts()
	set.Markdown(out, nil)
	if o.json != "" {
		if err := writeJSON(o.json, set); err != nil {
			return err
		}
	}
	for _, f := range set.Figures {
		if x := f.Of(nameOurs); x == nil || x.Failed > 0 {
			return fmt.Errorf("%s: %s failed, see above", f.ID, nameOurs)
		}
	}
	return nil
}

func writeJSON(file string, set *figures.Set) error {
	f, err := os.Create(file)
	if err != nil {
		return err
	}
	return errors.Join(set.JSON(f), f.Close())
}

// booted starts the machines, measures them and ends them. Only smolvmm must start.
func booted(ctx context.Context, o *options, files string, monitors []monitor, set *figures.Set, diag io.Writer) ([]figures.Figure, error) {
	var subjects []subject
	for _, m := range monitors {
		dir, err := os.MkdirTemp("", "vsock-")
		if err != nil {
			return nil, err
		}
		defer os.RemoveAll(dir)
		begin := time.Now()
		r, err := start(ctx, m, files, dir, bootLimit)
		if err != nil {
			err = fmt.Errorf("%s: %w", m.name, err)
			if m.name == nameOurs || ctx.Err() != nil {
				return nil, err
			}
			set.Absent = append(set.Absent, err.Error())
			continue
		}
		defer r.end()
		fmt.Fprintf(diag, "%s: its guest is ready after %v\n", m.name, time.Since(begin).Round(10*time.Millisecond))
		subjects = append(subjects, subject{m.name, func(port uint32) (io.ReadWriteCloser, error) {
			c, err := streams.Connect(r.socket, port, roundLimit)
			if err != nil {
				return nil, fmt.Errorf("%w; the console: %s", err, r.console.last(4))
			}
			return c, nil
		}})
	}
	return measure(ctx, o, subjects, diag)
}
