// Package build makes images of a folder with several programs, in turn.
package build

import (
	"context"
	"errors"
	"fmt"
	"math"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// MakeFolder fills a folder with files of noise: many small ones and few large,
// the same every time. It gives the bytes in them.
func MakeFolder(dir string, files int, bytes int64) (int64, error) {
	r := rand.New(rand.NewPCG(1, 2))
	sizes := make([]float64, files)
	sum := 0.0
	for i := range sizes {
		// Log-normal, as sizes of files are.
		sizes[i] = min(200, max(0.05, math.Exp(2*r.NormFloat64())))
		sum += sizes[i]
	}
	noise := rand.NewChaCha8([32]byte{1})
	total := int64(0)
	for i := range sizes {
		sub := filepath.Join(dir, strconv.Itoa(i%10), strconv.Itoa(i%97))
		if err := os.MkdirAll(sub, 0o755); err != nil {
			return 0, err
		}
		b := make([]byte, int64(sizes[i]/sum*float64(bytes)))
		_, _ = noise.Read(b)
		total += int64(len(b))
		if err := os.WriteFile(filepath.Join(sub, fmt.Sprintf("file-%d", i)), b, 0o644); err != nil {
			return 0, err
		}
	}
	return total, nil
}

// Subject is a program that makes an image, and what was measured of it.
type Subject struct {
	Name                 string
	Argv                 func(img string) []string
	Env                  []string  // variables besides this process's own
	Wall, CPU, RSS, Disk []float64 // ms, ms, MiB, MB
}

// Run makes an image, of so many bytes of contents.
func (s *Subject) Run(ctx context.Context, img string, bytes int64, counts bool) error {
	if err := os.Remove(img); err != nil && !errors.Is(err, os.ErrNotExist) {
		return err
	}
	m, err := Traced(ctx, s.Argv(img), s.Env...)
	if err != nil {
		return err
	}
	st, err := os.Stat(img)
	if err != nil {
		return err
	}
	held := st.Sys().(*syscall.Stat_t).Blocks * 512
	if held < bytes {
		return fmt.Errorf("the image holds %d bytes for %d of contents", held, bytes)
	}
	if counts {
		s.Wall = append(s.Wall, float64(m.Wall)/1e6)
		s.CPU = append(s.CPU, float64(m.CPU)/1e6)
		s.RSS = append(s.RSS, float64(m.RSS)/(1<<20))
		s.Disk = append(s.Disk, float64(held)/1e6)
	}
	return nil
}

// Measured is what one run took.
type Measured struct {
	Wall, CPU time.Duration
	RSS       int64 // bytes, at the peak
}

// Traced runs a program and reads its peak memory at its end. What wait4 tells
// of it begins with this process's own, so the program is stopped as it exits
// and asked.
func Traced(ctx context.Context, argv []string, env ...string) (m Measured, err error) {
	runtime.LockOSThread() // ptrace's requests come from one thread
	defer runtime.UnlockOSThread()
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	if len(env) > 0 {
		cmd.Env = append(os.Environ(), env...)
	}
	cmd.SysProcAttr = &syscall.SysProcAttr{Ptrace: true}
	begin := time.Now()
	if err := cmd.Start(); err != nil {
		return m, err
	}
	pid := cmd.Process.Pid
	for first := true; ; first = false {
		var ws unix.WaitStatus
		var ru unix.Rusage
		if _, err := unix.Wait4(pid, &ws, unix.WALL, &ru); err != nil {
			if errors.Is(err, unix.EINTR) {
				continue
			}
			return m, err
		}
		sig := 0
		switch {
		case ws.Exited() || ws.Signaled():
			m.Wall = time.Since(begin)
			m.CPU = time.Duration(unix.TimevalToNsec(ru.Utime) + unix.TimevalToNsec(ru.Stime))
			if ws.ExitStatus() != 0 {
				return m, fmt.Errorf("%v ended with %#x", argv, ws)
			}
			return m, nil
		case first: // stopped by its exec
			if err := unix.PtraceSetOptions(pid, unix.PTRACE_O_TRACEEXIT|unix.PTRACE_O_EXITKILL); err != nil {
				return m, err
			}
		case ws.StopSignal() == unix.SIGTRAP && ws.TrapCause() == unix.PTRACE_EVENT_EXIT:
			if m.RSS, err = peak(pid); err != nil {
				return m, err
			}
		default:
			sig = int(ws.StopSignal())
		}
		if err := unix.PtraceCont(pid, sig); err != nil {
			return m, err
		}
	}
}

// peak is VmHWM of a process.
func peak(pid int) (int64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	for line := range strings.Lines(string(b)) {
		if v, ok := strings.CutPrefix(line, "VmHWM:"); ok {
			n, err := strconv.ParseInt(strings.TrimSuffix(strings.TrimSpace(v), " kB"), 10, 64)
			return n << 10, err
		}
	}
	return 0, errors.New("no VmHWM")
}
