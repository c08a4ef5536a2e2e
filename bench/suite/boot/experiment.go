package boot

import (
	"context"
	"errors"
	"fmt"
	"io"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/machine"
	"github.com/smolvmm/smolvmm/bench/internal/smaps"
)

// maxFailures is how many failed starts, with none that worked, make a subject drop out of an experiment.
const maxFailures = 3

// Series are the starts of one subject in an experiment, by round. A failed start is nil.
type Series struct {
	Subject Subject
	samples []*Sample
	failed  int
	Failure string // the first failure
	dropped bool
}

// Experiment is one guest started by several subjects in turn.
type Experiment struct {
	what   string
	rounds int
	warm   int // rounds before those that count
	Launch func(Subject) Launch
	// busy tells how many processors others have used since it was last called. A round is done again if they used more
	// than machine.NoisyOthers: that depends on the machine alone, never on a figure, and strikes all subjects of the round
	// alike. Nil: every round counts.
	busy func() float64
	// progress is told of every round; nil: nobody is.
	progress func(what string, done, total int)
}

// maxRepeats is how many rounds may be done again for each that counts, when the machine is not quiet.
const maxRepeats = 10

// run starts every subject once a round. The order rotates, so that nobody always follows the same neighbour.
func (e Experiment) run(ctx context.Context, subjects []Subject, notes io.Writer) []*Series {
	var out []*Series
	for _, s := range subjects {
		out = append(out, &Series{Subject: s})
	}
	began := time.Now()
	repeats := 0
	if e.busy != nil {
		e.busy()
	}
	for round := 0; round < e.warm+e.rounds && ctx.Err() == nil; {
		samples := make([]*Sample, len(out))
		for i := range out {
			at := (i + round) % len(out)
			x := out[at]
			if x.dropped {
				continue
			}
			s, err := Start(ctx, e.Launch(x.Subject))
			if err != nil && ctx.Err() != nil {
				return out
			}
			if err != nil {
				x.fail(err)
				fmt.Fprintf(notes, "boot: %s: round %d: %v\n", e.what, round+1, err)
				continue
			}
			samples[at] = &s
		}
		if e.busy != nil && e.busy() > machine.NoisyOthers && repeats < maxRepeats*(e.warm+e.rounds) {
			repeats++
			continue
		}
		for i, x := range out {
			if round >= e.warm {
				x.samples = append(x.samples, samples[i])
			}
		}
		round++
		if e.progress != nil {
			e.progress(e.what, round, e.warm+e.rounds)
		}
	}
	fmt.Fprintf(notes, "boot: %s: %d rounds, %d programs in turn, %v; %d rounds done again because others were busy\n",
		e.what, e.rounds, len(out), time.Since(began).Round(time.Second), repeats)
	return out
}

// fail notes a failed start. What never works is not waited for in every round.
func (x *Series) fail(err error) {
	x.failed++
	if x.Failure == "" {
		x.Failure = err.Error()
	}
	works := false
	for _, s := range x.samples {
		works = works || s != nil
	}
	if !works && (x.failed >= maxFailures || errors.Is(err, errLimit)) {
		x.dropped = true
	}
}

// metric is a figure of a sample.
type metric struct {
	name string
	unit string
	of   func(*Sample) (float64, bool)
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }

func mib(b uint64) float64 { return float64(b) / (1 << 20) }

// The figures that the tables show.
var (
	toMark = metric{"process start → first guest instruction, seen as its byte on standard output", "ms", func(s *Sample) (float64, bool) { return ms(s.Mark), s.Mark > 0 }}
	toEnd  = metric{"process start → process gone, the guest ending its machine at once", "ms", func(s *Sample) (float64, bool) { return ms(s.End), s.End > 0 }}
	// toVersion is what a program's start costs before it does any work.
	toVersion = metric{"process start → process gone, asked for its version (--version)", "ms", func(s *Sample) (float64, bool) { return ms(s.End), s.End > 0 }}
	rss       = metric{"resident memory of the monitor (RSS), guest pages left out", "MiB", func(s *Sample) (float64, bool) { return memoryOf(s, func(m *smaps.Memory) uint64 { return m.RSS }) }}
	dirty     = metric{"private dirty memory of the monitor, guest pages left out", "MiB", func(s *Sample) (float64, bool) {
		return memoryOf(s, func(m *smaps.Memory) uint64 { return m.PrivateDirty })
	}}
	toConsole = metric{"process start → the kernel's first console byte", "ms", func(s *Sample) (float64, bool) { return ms(s.Console), s.Console > 0 }}
	toInit    = metric{"process start → init's command runs (its first line)", "ms", func(s *Sample) (float64, bool) { return ms(s.Until), s.Until > 0 }}
	ofKernel  = metric{"the kernel's first instruction → init's command runs (its first line)", "ms", func(s *Sample) (float64, bool) {
		return ms(s.Until - s.Mark), s.Until > 0 && s.Mark > 0
	}}
)

func memoryOf(s *Sample, of func(*smaps.Memory) uint64) (float64, bool) {
	if s.Memory == nil {
		return 0, false
	}
	return mib(of(s.Memory)), true
}

// values are the metric's figures of all rounds that have one.
func (x *Series) values(m metric) []float64 {
	var out []float64
	for _, s := range x.samples {
		if s == nil {
			continue
		}
		if v, ok := m.of(s); ok {
			out = append(out, v)
		}
	}
	return out
}

// pairs are the figures of the rounds in which both have one.
func pairs(x, y *Series, m metric) (a, b []float64) {
	for i := range min(len(x.samples), len(y.samples)) {
		if x.samples[i] == nil || y.samples[i] == nil {
			continue
		}
		v, ok1 := m.of(x.samples[i])
		w, ok2 := m.of(y.samples[i])
		if ok1 && ok2 {
			a, b = append(a, v), append(b, w)
		}
	}
	return a, b
}

func find(xs []*Series, name string) *Series {
	for _, x := range xs {
		if x.Subject.name == name {
			return x
		}
	}
	return nil
}
