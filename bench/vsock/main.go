// Command vsock measures virtio-vsock between a mock guest and the host: streams each
// way and a round trip of a byte, over a Unix socket and in the process. The
// measurements are the benchmarks of devices/vsock/muxer; this program repeats them
// and tells medians and spread. It needs the go command and no KVM.
//
//	go run ./bench/vsock
package main

import (
	"bufio"
	"cmp"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
)

const pkg = "github.com/smolvmm/smolvmm/devices/vsock/muxer"

// Goals: at least so much of a stream, in Gbit/s, and at most so long for a byte
// there and back, in microseconds.
const (
	goalStream = 4
	goalTrip   = 30
)

// result is what one benchmark gave, run by run.
type result struct {
	Name    string        `json:"name"`
	Unit    string        `json:"unit"` // "Gbit/s" or "µs"
	Values  []float64     `json:"values"`
	Summary stats.Summary `json:"summary"`
}

// good says whether the median reaches the goal.
func (r *result) good() bool {
	if r.Unit == "µs" {
		return r.Summary.Median <= goalTrip
	}
	return r.Summary.Median >= goalStream
}

// parse takes the lines of go test's benchmarks.
func parse(r io.Reader) ([]result, error) {
	byName := map[string]*result{}
	var order []string
	lines := bufio.NewScanner(r)
	for lines.Scan() {
		f := strings.Fields(lines.Text())
		if len(f) < 4 || !strings.HasPrefix(f[0], "Benchmark") || f[3] != "ns/op" {
			continue
		}
		name, _, _ := strings.Cut(strings.TrimPrefix(f[0], "Benchmark"), "-")
		unit, field := "µs", f[2]
		if len(f) >= 6 && f[5] == "MB/s" {
			unit, field = "Gbit/s", f[4]
		}
		v, err := strconv.ParseFloat(field, 64)
		if err != nil {
			return nil, fmt.Errorf("%q: %w", lines.Text(), err)
		}
		if unit == "µs" {
			v /= 1000
		} else {
			v *= 8.0 / 1000
		}
		if byName[name] == nil {
			byName[name] = &result{Name: name, Unit: unit}
			order = append(order, name)
		}
		byName[name].Values = append(byName[name].Values, v)
	}
	if err := lines.Err(); err != nil {
		return nil, err
	}
	if len(order) == 0 {
		return nil, errors.New("go test gave no measurement")
	}
	var out []result
	for _, name := range order {
		r := byName[name]
		r.Summary = stats.Summarise(r.Values)
		out = append(out, *r)
	}
	return out, nil
}

func table(w io.Writer, rs []result) {
	fmt.Fprintf(w, "%-24s %-7s %8s %8s %8s %8s %4s  goal\n", "", "", "median", "p10", "p90", "worst", "n")
	for _, r := range rs {
		worst, goal := r.Summary.Min, fmt.Sprintf("≥ %d", goalStream)
		if r.Unit == "µs" {
			worst, goal = slices.MaxFunc(r.Values, cmp.Compare[float64]), fmt.Sprintf("≤ %d", goalTrip)
		}
		if !r.good() {
			goal += " MISSED"
		}
		s := r.Summary
		fmt.Fprintf(w, "%-24s %-7s %8s %8s %8s %8s %4d  %s\n", r.Name, r.Unit, stats.Digits(s.Median), stats.Digits(s.P10), stats.Digits(s.P90), stats.Digits(worst), s.N, goal)
	}
}

func run(args []string, out, diag io.Writer) error {
	f := flag.NewFlagSet("vsock", flag.ContinueOnError)
	f.SetOutput(diag)
	n := f.Int("n", 10, "`runs` of each")
	each := f.String("time", "1s", "how `long` each takes")
	file := f.String("json", "", "write every sample to this `file`")
	if err := f.Parse(args); err != nil {
		return err
	}
	if *n < 1 || *n > 1000 || f.NArg() > 0 {
		return fmt.Errorf("-n from 1 to 1000, and nothing else: %q", args)
	}
	cmd := exec.Command("go", "test", "-run", "^$", "-bench", ".", "-benchtime", *each, "-count", strconv.Itoa(*n), "-timeout", "0", pkg)
	cmd.Stderr = diag
	b, err := cmd.Output()
	if err != nil {
		return fmt.Errorf("%v: %w\n%s", cmd, err, b)
	}
	rs, err := parse(strings.NewReader(string(b)))
	if err != nil {
		return err
	}
	table(out, rs)
	if *file == "" {
		return nil
	}
	js, err := json.MarshalIndent(rs, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(*file, append(js, '\n'), 0o644)
}

func main() {
	if err := run(os.Args[1:], os.Stdout, os.Stderr); err != nil {
		fmt.Fprintln(os.Stderr, "vsock:", err)
		os.Exit(1)
	}
}
