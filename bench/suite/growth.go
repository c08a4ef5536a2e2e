package suite

import (
	"bufio"
	"bytes"
	"context"
	"fmt"
	"io"
	"math"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"syscall"
	"time"

	"github.com/smolvmm/smolvmm/bench/internal/demoguest"
	"github.com/smolvmm/smolvmm/bench/internal/figures"
	"github.com/smolvmm/smolvmm/bench/internal/smaps"
	"github.com/smolvmm/smolvmm/bench/suite/boot"
	"github.com/smolvmm/smolvmm/bench/suite/disk"
)

// growthRounds are how many machines are watched at most: each takes as long as was
// asked for, which may be hours.
const growthRounds = 3

// growthMiB is the watched guests' memory.
const growthMiB = 64

// growthPart tells how much private memory a monitor gains while its guest waits, and
// while it reads and writes its disk without an end.
func (r *runner) growthPart(ctx context.Context) error {
	demo, tiny, image := filepath.Join(r.dir, "load.elf"), filepath.Join(r.dir, "wait.elf"), filepath.Join(r.dir, "load.img")
	if err := demoguest.Write(demo); err != nil {
		return err
	}
	if err := os.WriteFile(tiny, boot.TinyGuest(true), 0o644); err != nil {
		return err
	}
	if err := disk.Image(image); err != nil {
		return err
	}
	subjects, _ := disk.Subjects(r.Program, slices.Contains(r.Against, "qemu"))
	for _, w := range []struct {
		id, what, kernel, mode string
		long                   time.Duration
	}{
		{"memory/growth-idle", "the guest waits", tiny, "hlt", r.Idle},
		{"memory/growth-load", "the guest reads and writes its disk", demo, "count,every=64,lax", r.Load},
	} {
		if w.long <= 0 {
			r.absent(w.id + ": no time for it (-idle, -load)")
			continue
		}
		fig := figures.Figure{ID: w.id, What: fmt.Sprintf("private dirty memory gained while %s for %v", w.what, w.long), Unit: "KiB", Better: figures.Less, Detail: true}
		for _, s := range subjects {
			x := figures.Series{Subject: s.Name}
			for range min(r.rounds, growthRounds) {
				v, err := grown(ctx, s.Argv(w.kernel, image, w.mode), ramOf(s.Name), w.long)
				if ctx.Err() != nil {
					return context.Cause(ctx)
				}
				if err != nil {
					v = math.NaN()
					if x.Failed++; x.Failure == "" {
						x.Failure = err.Error()
					}
				}
				x.Values = append(x.Values, v)
			}
			if s.Name == figures.Ours && x.Failed > 0 {
				r.broken = append(r.broken, fmt.Errorf("%s: %s", w.id, x.Failure))
			}
			fig.Series = append(fig.Series, x)
		}
		r.set.Add(fig)
	}
	return nil
}

// ramOf tells a guest's memory among a monitor's mappings.
func ramOf(name string) func(smaps.Mapping) bool {
	if name == figures.Ours {
		return smaps.Smolvmm
	}
	return smaps.Sized(growthMiB << 20)
}

// grown runs a machine, and gives the KiB of private dirty memory by which its monitor
// grew from the guest's first byte on.
func grown(ctx context.Context, argv []string, ram func(smaps.Mapping) bool, long time.Duration) (float64, error) {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	c := exec.CommandContext(ctx, argv[0], argv[1:]...)
	c.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	c.WaitDelay = time.Second // a helper of the program that has its standard error holds nothing up
	var stderr bytes.Buffer
	c.Stderr = &stderr
	out, in, err := os.Pipe()
	if err != nil {
		return 0, err
	}
	defer out.Close()
	c.Stdout = in
	err = c.Start()
	in.Close()
	if err != nil {
		return 0, err
	}
	gone := make(chan error, 1)
	fail := func(err error) (float64, error) {
		cancel()
		<-gone
		return 0, fmt.Errorf("%w; it printed %q", err, stderr.Bytes()[:min(300, stderr.Len())])
	}
	if err := out.SetReadDeadline(time.Now().Add(answerLimit)); err != nil {
		go func() { gone <- c.Wait() }()
		return fail(err)
	}
	console := bufio.NewReader(out)
	_, err = console.ReadByte()
	go func() { gone <- c.Wait() }()
	if err != nil {
		return fail(fmt.Errorf("no byte from the guest: %w", err))
	}
	_ = out.SetReadDeadline(time.Time{})
	go func() { _, _ = io.Copy(io.Discard, console) }() // ends with the pipe
	before, err := smaps.Read(c.Process.Pid, ram)
	if err != nil {
		return fail(err)
	}
	select {
	case end := <-gone:
		gone <- end
		return fail(fmt.Errorf("ended: %v", end))
	case <-ctx.Done():
		return fail(ctx.Err())
	case <-time.After(long):
	}
	after, err := smaps.Read(c.Process.Pid, ram)
	if err != nil {
		return fail(err)
	}
	cancel()
	<-gone
	return (float64(after.PrivateDirty) - float64(before.PrivateDirty)) / 1024, nil
}
