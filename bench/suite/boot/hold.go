package boot

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Held is a machine that runs on after its mark.
type Held struct {
	Mark time.Duration // from just before the fork to the mark
	PID  int
	cmd  *exec.Cmd
	out  *os.File
}

// Hold starts a guest of a few bytes that waits, and returns when its mark is here.
func Hold(ctx context.Context, s Subject, kernel string, mib int) (*Held, error) {
	argv := s.command(Guest{kernel: kernel, mib: mib, hold: true})
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	r, w, err := os.Pipe()
	if err != nil {
		return nil, err
	}
	var stderr bytes.Buffer
	c.Stdout, c.Stderr = w, &stderr
	began := time.Now()
	err = c.Start()
	w.Close()
	if err != nil {
		r.Close()
		return nil, err
	}
	h := &Held{PID: c.Process.Pid, cmd: c, out: r}
	if err = r.SetReadDeadline(began.Add(tinyLimit)); err == nil {
		err = untilMark(r)
	}
	h.Mark = time.Since(began)
	if err != nil {
		h.Close()
		return nil, fmt.Errorf("%s: %w; it printed %q", s.name, err, tail(stderr.Bytes()))
	}
	return h, nil
}

// untilMark reads to the mark, and no further than what a monitor says before it.
func untilMark(r *os.File) error {
	buf := make([]byte, 4096)
	for range 256 {
		n, err := r.Read(buf)
		if bytes.IndexByte(buf[:n], mark) >= 0 {
			return nil
		}
		if err != nil {
			return fmt.Errorf("no mark: %w", err)
		}
	}
	return errors.New("no mark among much that was printed")
}

// Close ends the machine.
func (h *Held) Close() {
	_ = h.cmd.Process.Kill()
	_ = h.cmd.Wait()
	h.out.Close()
}

// pss is the memory of a process with its guest's, shared pages divided, in bytes.
func pss(pid int) (uint64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/smaps_rollup", pid))
	if err != nil {
		return 0, err
	}
	return kilobytes(b, "Pss:")
}

// available is the memory that the host could still give, in bytes, and all it has.
func available() (free, all uint64, err error) {
	b, err := os.ReadFile("/proc/meminfo")
	if err != nil {
		return 0, 0, err
	}
	free, err = kilobytes(b, "MemAvailable:")
	if err != nil {
		return 0, 0, err
	}
	all, err = kilobytes(b, "MemTotal:")
	return free, all, err
}

// kilobytes is a field of a file of /proc, in bytes.
func kilobytes(text []byte, field string) (uint64, error) {
	for line := range strings.Lines(string(text)) {
		if v, ok := strings.CutPrefix(line, field); ok {
			n, err := strconv.ParseUint(strings.TrimSpace(strings.TrimSuffix(strings.TrimSpace(v), "kB")), 10, 64)
			return n << 10, err
		}
	}
	return 0, fmt.Errorf("no %s", field)
}

// Density is what many machines at once came to.
type Density struct {
	Subject string
	Starts  []time.Duration // of each machine, to its mark, in the order of their marks
	Done    []time.Duration // when each mark came, from the first machine's start
	Memory  []MemoryAt
	Stopped string // why there are not more; empty: all that were asked for
}

// MemoryAt is the memory of so many machines, their guests' pages included.
type MemoryAt struct {
	Machines int
	PSS      uint64 // bytes
}

// reserve is the part of the host's memory that is left alone: 1/reserve.
const reserve = 6

// checkpoints are the numbers of machines at which memory is added up.
func checkpoints(most int) (out []int) {
	for _, n := range []int{1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000} {
		if n < most {
			out = append(out, n)
		}
	}
	return append(out, most)
}

// Crowd starts machines, width of them at a time, until there are most of them, one
// fails, or the host's memory ends; then it ends them all.
func Crowd(ctx context.Context, s Subject, kernel string, mib, most, width int, progress func(what string, done, total int)) (d Density, err error) {
	d.Subject = s.name
	var held []*Held
	defer func() {
		var all sync.WaitGroup
		for _, h := range held {
			all.Go(h.Close)
		}
		all.Wait()
	}()
	var spent time.Duration // starting, without the time in which memory was added up
	for _, goal := range checkpoints(most) {
		began := time.Now()
		var mu sync.Mutex
		var all sync.WaitGroup
		left := goal - len(held)
		for range min(width, left) {
			all.Go(func() {
				for {
					mu.Lock()
					more := left > 0 && d.Stopped == ""
					left--
					mu.Unlock()
					if !more {
						return
					}
					free, total, err := available()
					var h *Held
					if err == nil && free < total/reserve {
						err = fmt.Errorf("a sixth of the host's memory is all that is left: %d MiB", free>>20)
					}
					if err == nil {
						h, err = Hold(ctx, s, kernel, mib)
					}
					mu.Lock()
					if err != nil {
						d.Stopped = err.Error()
					} else {
						held = append(held, h)
						d.Starts = append(d.Starts, h.Mark)
						d.Done = append(d.Done, spent+time.Since(began))
					}
					mu.Unlock()
				}
			})
		}
		all.Wait()
		spent += time.Since(began)
		if ctx.Err() != nil {
			return d, context.Cause(ctx)
		}
		at := MemoryAt{Machines: len(held)}
		for _, h := range held {
			n, err := pss(h.PID)
			if err != nil {
				return d, fmt.Errorf("%s: a machine is gone: %w", s.name, err)
			}
			at.PSS += n
		}
		if at.Machines > 0 {
			d.Memory = append(d.Memory, at)
		}
		if progress != nil {
			progress("density, "+s.name, len(held), most)
		}
		if d.Stopped != "" {
			break
		}
	}
	return d, nil
}

// kneeWindow is how many starts are looked at together, kneeFactor how much slower
// than the first they are from the knee on.
const (
	kneeWindow = 8
	kneeFactor = 2
)

// Knee is the number of machines from which on starts take twice as long as the
// first ones did, for good: 0 if there is none.
func Knee(starts []time.Duration) int {
	middle := func(v []time.Duration) time.Duration {
		s := slices.Sorted(slices.Values(v))
		return s[len(s)/2]
	}
	if len(starts) < 2*kneeWindow {
		return 0
	}
	bound := kneeFactor * middle(starts[:kneeWindow])
	knee := 0
	for at := kneeWindow; at+kneeWindow <= len(starts); at++ {
		if middle(starts[at:at+kneeWindow]) <= bound {
			knee = 0
		} else if knee == 0 {
			knee = at + 1
		}
	}
	return knee
}
