package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"time"

	"github.com/smolvmm/smolvmm/bench/netbsd"
)

// soakInLabs runs this program in one lab after the other, perLab boots in each:
// every lab's first boot is the first one of a fresh host kernel.
func soakInLabs(ctx context.Context, o options, dir string, stdout, stderr io.Writer) (done []result, err error) {
	lab, err := netbsd.Lab(ctx, dir)
	if err != nil {
		return nil, err
	}
	self := filepath.Join(dir, "soak")
	if err := netbsd.Program(ctx, self, "bench/soak"); err != nil {
		return nil, err
	}
	empty := filepath.Join(dir, "empty") // the lab takes the working directory along
	if err := os.MkdirAll(empty, 0o700); err != nil {
		return nil, err
	}
	for o.first = 0; o.first < o.n; {
		n := min(o.perLab, o.n-o.first)
		out := filepath.Join(dir, "result")
		if err := os.RemoveAll(out); err != nil {
			return done, err
		}
		cmd := exec.CommandContext(ctx, lab, append(o.labFlags(n, out), o.inside(self, n)...)...)
		cmd.Dir, cmd.Stdout, cmd.Stderr = empty, stdout, stderr
		cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
		runErr := cmd.Run()
		some, err := readResults(out)
		done = append(done, some...)
		if err := errors.Join(runErr, err); err != nil {
			return done, fmt.Errorf("lab with boots from %d: %w", o.first, err)
		}
		if len(some) != n {
			return done, fmt.Errorf("lab with boots from %d: %d of %d boots", o.first, len(some), n)
		}
		o.first += n
	}
	return done, nil
}

// Where a lab finds things.
const (
	labKernel  = "/soak/netbsd"
	labCommand = "/soak/smolvmm"
	labResult  = "/tmp/soak.json"
	labDisk    = "/dev/vda"
)

// labFlags gives a lab of n boots what they need. Its limit is beyond all of
// theirs, so that a boot that hangs is told by this program itself.
func (o *options) labFlags(n int, out string) []string {
	limit := time.Duration(n)*(o.timeout+20*time.Second) + time.Minute
	args := []string{"-timeout", limit.String(), "-out", labResult + ":" + out}
	if o.guest == guestNetBSD {
		args = append(args, "-file", o.kernel+":"+labKernel, "-drive", o.disk)
	}
	if o.command != "" {
		args = append(args, "-file", o.command+":"+labCommand)
	}
	return args
}

// inside is the command line of n boots in a lab.
func (o *options) inside(self string, n int) []string {
	args := []string{self, "-guest", o.guest, "-cpus", o.cpus.String(), "-mode", o.mode, "-timeout", o.timeout.String(),
		"-n", strconv.Itoa(n), "-first", strconv.Itoa(o.first), "-result", labResult}
	if o.guest == guestNetBSD {
		args = append(args, "-kernel", labKernel, "-disk", labDisk)
	}
	if o.command != "" {
		args = append(args, "-command", labCommand)
	}
	return args
}

func writeResults(file string, rs []result) error {
	b, err := json.Marshal(rs)
	if err != nil {
		return err
	}
	return os.WriteFile(file, b, 0o600)
}

func readResults(file string) (rs []result, err error) {
	b, err := os.ReadFile(file)
	if err != nil {
		return nil, err
	}
	return rs, json.Unmarshal(b, &rs)
}

// summary prints counts and times by number of CPUs.
func summary(w io.Writer, rs []result) {
	by := map[int][]time.Duration{}
	for _, r := range rs {
		by[r.CPUs] = append(by[r.CPUs], r.Took)
	}
	fmt.Fprintf(w, "%d good boots\n", len(rs))
	var cpus []int
	for n := range by {
		cpus = append(cpus, n)
	}
	slices.Sort(cpus)
	for _, n := range cpus {
		took := by[n]
		slices.Sort(took)
		fmt.Fprintf(w, "%d CPUs: %d boots, median %v, p99 %v, longest %v\n", n, len(took),
			percentile(took, 50).Round(time.Microsecond), percentile(took, 99).Round(time.Microsecond), took[len(took)-1].Round(time.Microsecond))
	}
}

// percentile is the smallest of sorted values that p per cent do not exceed.
func percentile(sorted []time.Duration, p int) time.Duration {
	return sorted[max(0, (len(sorted)*p+99)/100-1)]
}
