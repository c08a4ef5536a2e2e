// Command vsock measures virtio-vsock: streams each way and a round trip of a byte.
//
// Between a mock guest and the host, over a Unix socket and in the process, the
// measurements are the benchmarks of devices/vsock/muxer; this program repeats them
// and tells medians and spread. It needs the go command and no KVM. With -lab it
// boots Debian's kernel in the lab under smolvmm, and under Firecracker where that is
// on PATH, and measures the streams of a program in the guest.
//
//	go run ./bench/vsock
//	go run ./bench/vsock -lab
package main

import (
	"bufio"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"flag"
	"fmt"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strconv"
	"strings"
	"syscall"

	"github.com/smolvmm/smolvmm/bench/internal/stats"
	"github.com/smolvmm/smolvmm/bench/netbsd"
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

// options are the flags.
type options struct {
	n, warm, mb, trips int
	each, json, files  string
	linux, lab         bool
}

const usageText = `Measure virtio-vsock: streams each way, and a byte there and back.

  go run ./bench/vsock [flags]           between a mock guest and the host, in one process
  go run ./bench/vsock -lab [flags]      of a Linux guest in the lab, beside Firecracker's where it is on PATH
  go run ./bench/vsock -linux [flags]    of a Linux guest on this machine's KVM, the same

`

// errUsage is behind a wrong flag.
var errUsage = errors.New("wrong flags")

func (o *options) parse(args []string, diag io.Writer) error {
	f := flag.NewFlagSet("vsock", flag.ContinueOnError)
	f.SetOutput(io.Discard)
	f.BoolVar(&o.lab, "lab", false, "measure a Linux guest in the lab, with the lab's kernel")
	f.BoolVar(&o.linux, "linux", false, "measure a Linux guest on this machine, with the lab's kernel")
	f.IntVar(&o.n, "n", 10, "`runs` of each")
	f.StringVar(&o.each, "time", "1s", "how `long` each run takes, of the mock guest's")
	f.IntVar(&o.warm, "warm", 1, "`runs` before those that count, of a Linux guest")
	f.IntVar(&o.mb, "mb", 20, "`MB` of a stream, of a Linux guest's")
	f.IntVar(&o.trips, "trips", 200, "`bytes` there and back in each run, of a Linux guest's")
	f.StringVar(&o.files, "files", "", "`folder` with smolvmm, vmlinux and initrd, made before; the lab's runs use it")
	f.StringVar(&o.json, "json", "", "write every sample to this `file`")
	if err := f.Parse(args); err != nil {
		if errors.Is(err, flag.ErrHelp) {
			fmt.Fprint(diag, usageText)
			f.SetOutput(diag)
			f.PrintDefaults()
			return err
		}
		return fmt.Errorf("%w: %w", errUsage, err)
	}
	if f.NArg() > 0 {
		return fmt.Errorf("%w: %q is not a flag", errUsage, f.Arg(0))
	}
	for _, x := range []struct {
		name           string
		v, least, most int
	}{{"-n", o.n, 1, 1000}, {"-warm", o.warm, 0, 1000}, {"-mb", o.mb, 1, 100_000}, {"-trips", o.trips, 1, 1_000_000}} {
		if x.v < x.least || x.v > x.most {
			return fmt.Errorf("%w: %s %d: must be between %d and %d", errUsage, x.name, x.v, x.least, x.most)
		}
	}
	if o.lab && o.linux {
		return fmt.Errorf("%w: -lab and -linux are two places for the same: give one", errUsage)
	}
	return nil
}

// mocked measures a mock guest, by the muxer's benchmarks.
func mocked(ctx context.Context, o *options, out, diag io.Writer) error {
	cmd := exec.CommandContext(ctx, "go", "test", "-run", "^$", "-bench", ".", "-benchtime", o.each, "-count", strconv.Itoa(o.n), "-timeout", "0", pkg)
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
	if o.json == "" {
		return nil
	}
	js, err := json.MarshalIndent(rs, "", "  ")
	if err != nil {
		return err
	}
	return os.WriteFile(o.json, append(js, '\n'), 0o644)
}

func run(ctx context.Context, args []string, out, diag io.Writer) error {
	var o options
	if err := o.parse(args, diag); err != nil {
		return err
	}
	switch {
	case o.lab:
		return inLab(ctx, &o, out, diag)
	case o.linux:
		if err := netbsd.KVM(); err != nil {
			return fmt.Errorf("%w: -lab has one that does", err)
		}
		return guests(ctx, &o, out, diag)
	default:
		return mocked(ctx, &o, out, diag)
	}
}

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	err := run(ctx, os.Args[1:], os.Stdout, os.Stderr)
	stop()
	if err == nil || errors.Is(err, flag.ErrHelp) {
		return
	}
	fmt.Fprintln(os.Stderr, "vsock:", err)
	if errors.Is(err, errUsage) {
		os.Exit(2)
	}
	os.Exit(1)
}
