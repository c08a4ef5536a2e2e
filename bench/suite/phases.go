package suite

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

// moment is a line of `smolvmm demo --timeline`: milliseconds since main began.
type moment struct {
	name string
	ms   float64
}

// moments reads the lines "  1.234 ms  NAME", and passes over others.
func moments(text []byte) (out []moment) {
	for line := range strings.Lines(string(text)) {
		at, name, ok := strings.Cut(strings.TrimSpace(line), " ms  ")
		v, err := strconv.ParseFloat(at, 64)
		if ok && err == nil {
			out = append(out, moment{name, v})
		}
	}
	return out
}

// firstByte is the moment that is seen from outside as well.
const firstByte = "first console byte"

// outside is the part of a start that the monitor's own clock does not see.
const outside = "exec → main, and the first byte's way out"

// startParts are the pieces of a start, from outside and inside: seen is the time from
// the fork to the first console byte on standard output.
func startParts(seen float64, ms []moment) ([]figures.Part, error) {
	last := slices.IndexFunc(ms, func(m moment) bool { return m.name == firstByte })
	if last < 0 {
		return nil, fmt.Errorf("the timeline has no %q", firstByte)
	}
	out := []figures.Part{{Name: outside, Value: seen - ms[last].ms}}
	before := 0.0
	for _, m := range ms[:last+1] {
		out = append(out, figures.Part{Name: "→ " + m.name, Value: m.ms - before})
		before = m.ms
	}
	return out, nil
}

// phasesPart tells the phases of smolvmm's start apart by its own timeline, and what
// its exits are by its trace.
func (r *runner) phasesPart(ctx context.Context) error {
	var names []string
	values := map[string][]float64{}
	for round := range r.rounds + 1 {
		seen, text, err := r.timed(ctx, "demo", "--net", "none", "--timeline", "hello")
		if err != nil {
			return err
		}
		parts, err := startParts(float64(seen)/1e6, moments(text))
		if err != nil {
			return err
		}
		if round == 0 {
			for _, p := range parts {
				names = append(names, p.Name)
			}
			continue
		}
		for _, p := range parts {
			values[p.Name] = append(values[p.Name], p.Value)
		}
		r.progress("boot, phases", round+1, r.rounds+1)
	}
	bar, sum := figures.Bar{Name: figures.Ours}, 0.0
	for i, n := range names {
		fig := figures.Figure{
			ID: fmt.Sprintf("boot/phase-%02d", i+1), What: "phase of a start of the demo guest: " + n, Unit: "ms", Better: figures.Less, Detail: true,
			Series: []figures.Series{{Subject: figures.Ours, Values: values[n]}},
		}
		r.set.Add(fig)
		m := stats.Summarise(values[n]).Median
		bar.Parts = append(bar.Parts, figures.Part{Name: n, Value: m})
		sum += m
	}
	r.set.Stacks = append(r.set.Stacks, figures.Stack{ID: "boot/demo", Title: "Start of the demo guest, phases, medians", Unit: "ms", Bars: []figures.Bar{bar}})
	for _, p := range bar.Parts {
		if p.Value > 0.1*sum {
			r.set.Notes = append(r.set.Notes, fmt.Sprintf("boot: %q is %.0f %% of the demo guest's start", p.Name, 100*p.Value/sum))
		}
	}
	_, trace, err := r.timed(ctx, "demo", "--net", "none", "--trace", "hello")
	if err != nil {
		return err
	}
	r.set.Notes = append(r.set.Notes, "boot: exits of the demo guest's hello: "+exits(trace))
	return nil
}

// exits counts the lines of a trace by kind and place: "vcpu0 io write 0x3f8 (com1) …".
func exits(trace []byte) string {
	count := map[string]int{}
	var kinds []string
	all := 0
	for line := range strings.Lines(string(trace)) {
		f := strings.Fields(line)
		if len(f) < 4 || !strings.HasPrefix(f[0], "vcpu") {
			continue
		}
		kind := strings.Join(f[1:4], " ")
		if len(f) > 4 && strings.HasPrefix(f[4], "(") {
			kind += " " + f[4]
		}
		if count[kind]++; count[kind] == 1 {
			kinds = append(kinds, kind)
		}
		all++
	}
	slices.SortStableFunc(kinds, func(a, b string) int { return count[b] - count[a] })
	const most = 8
	var out []string
	for i, k := range kinds {
		if i == most {
			out = append(out, fmt.Sprintf("%d other kinds", len(kinds)-most))
			break
		}
		out = append(out, fmt.Sprintf("%s: %d", k, count[k]))
	}
	return fmt.Sprintf("%d; %s", all, strings.Join(out, ", "))
}

// timed runs smolvmm to its end, and gives when its first byte came and what it wrote to standard error.
func (r *runner) timed(ctx context.Context, args ...string) (time.Duration, []byte, error) {
	ctx, cancel := context.WithTimeout(ctx, answerLimit)
	defer cancel()
	c := exec.CommandContext(ctx, r.Program, args...)
	out, in, err := os.Pipe()
	if err != nil {
		return 0, nil, err
	}
	defer out.Close()
	var stderr bytes.Buffer
	c.Stdout, c.Stderr = in, &stderr
	began := time.Now()
	err = c.Start()
	in.Close()
	if err != nil {
		return 0, nil, err
	}
	var b [4096]byte
	_, rerr := out.Read(b[:])
	seen := time.Since(began)
	for err := rerr; err == nil; {
		_, err = out.Read(b[:])
	}
	if err := c.Wait(); err != nil || rerr != nil {
		return 0, nil, fmt.Errorf("smolvmm %s: %v, %v: %q", strings.Join(args, " "), err, rerr, stderr.Bytes()[:min(300, stderr.Len())])
	}
	return seen, stderr.Bytes(), nil
}
