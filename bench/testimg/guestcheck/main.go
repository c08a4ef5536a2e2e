// Command guestcheck tries what a booted guest must be able to do: it writes
// and reads back a file on the root file system, counts the processors and lets
// each work, and holds the clock against a pause. It prints a line for each and
// exits with the status that it is told to, or 1 when something is wrong.
package main

import (
	"bytes"
	"errors"
	"flag"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"path/filepath"
	"runtime"
	"sync"
	"time"
)

func main() { os.Exit(run(os.Args[1:], os.Stdout)) }

func run(args []string, out io.Writer) int {
	fl := flag.NewFlagSet("guestcheck", flag.ContinueOnError)
	fl.SetOutput(out)
	status := fl.Int("status", 0, "exit status if all is well")
	cpus := fl.Int("cpus", 0, "how many processors there must be; 0: any number")
	size := fl.Int("size", 4, "MiB to write and read back")
	dir := fl.String("dir", "/", "where to write")
	pause := fl.Duration("pause", 50*time.Millisecond, "how long to pause")
	env := fl.String("env", "", "NAME=VALUE that must be in the environment")
	file := fl.String("file", "", "PATH=CONTENT of a file that must be there")
	if err := fl.Parse(args); err != nil {
		return 1
	}
	fmt.Fprintf(out, "guestcheck: pid %d on %s/%s\n", os.Getpid(), runtime.GOOS, runtime.GOARCH)
	for _, c := range []struct {
		name string
		try  func() (string, error)
	}{
		{"environment", func() (string, error) { return checkEnv(*env) }},
		{"file", func() (string, error) { return checkFile(*file) }},
		{"cpus", func() (string, error) { return checkCPUs(*cpus) }},
		{"clock", func() (string, error) { return checkClock(*pause) }},
		{"disk", func() (string, error) { return checkDisk(*dir, *size<<20) }},
	} {
		said, err := c.try()
		if err != nil {
			fmt.Fprintf(out, "guestcheck: %s: FAILED: %v\n", c.name, err)
			return 1
		}
		fmt.Fprintf(out, "guestcheck: %s: %s\n", c.name, said)
	}
	fmt.Fprintf(out, "guestcheck: ok, status %d\n", *status)
	return *status
}

func checkEnv(want string) (string, error) {
	if want == "" {
		return "not asked for", nil
	}
	for _, v := range os.Environ() {
		if v == want {
			return want, nil
		}
	}
	return "", fmt.Errorf("no %s among %q", want, os.Environ())
}

func checkFile(want string) (string, error) {
	if want == "" {
		return "not asked for", nil
	}
	path, content, ok := bytes.Cut([]byte(want), []byte("="))
	if !ok {
		return "", errors.New("want PATH=CONTENT")
	}
	got, err := os.ReadFile(string(path))
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, content) {
		return "", fmt.Errorf("%s holds %q, not %q", path, got, content)
	}
	st, err := os.Stat(string(path))
	if err != nil {
		return "", err
	}
	return fmt.Sprintf("%s, mode %v", path, st.Mode()), nil
}

// checkCPUs has a busy thread for each processor, whose counters are printed.
func checkCPUs(want int) (string, error) {
	n, err := numCPU()
	if err != nil {
		return "", err
	}
	if want != 0 && n != want {
		return "", fmt.Errorf("%d, not %d", n, want)
	}
	// Each thread counts to the same number; one that has not done so after
	// 20 seconds is stuck. The clock is a system call here, and a slow one
	// where emulated processors share real ones: it is read now and then.
	const goal, look = 1_000_000, 50_000
	counts := make([]int, n)
	end := time.Now().Add(20 * time.Second)
	var wg sync.WaitGroup
	for i := range counts {
		wg.Go(func() {
			runtime.LockOSThread()
			for counts[i] < goal {
				if counts[i]%look == 0 && time.Now().After(end) {
					return
				}
				counts[i]++
			}
		})
	}
	wg.Wait()
	for i, c := range counts {
		if c < goal {
			return "", fmt.Errorf("thread %d of %d counted to %d only", i, n, c)
		}
	}
	return fmt.Sprintf("%d, thread counters %v", n, counts), nil
}

// checkClock allows a pause to take up to two seconds more: software emulation
// on a busy host does.
func checkClock(pause time.Duration) (string, error) {
	start := time.Now()
	time.Sleep(pause)
	took := time.Since(start)
	if took < pause || took > pause+2*time.Second {
		return "", fmt.Errorf("a pause of %v took %v", pause, took)
	}
	if year := start.Year(); year < 2024 || year > 2100 {
		return "", fmt.Errorf("the date is %v", start)
	}
	return fmt.Sprintf("a pause of %v took %v at %s", pause, took.Round(time.Microsecond), start.UTC().Format(time.RFC3339)), nil
}

// checkDisk writes size bytes of noise, waits for them to be on the disk, and
// reads them back by another descriptor.
func checkDisk(dir string, size int) (string, error) {
	seed := [32]byte{1, 2, 3}
	data := make([]byte, size)
	_, _ = rand.NewChaCha8(seed).Read(data)
	path := filepath.Join(dir, "guestcheck.tmp")
	start := time.Now()
	f, err := os.Create(path)
	if err != nil {
		return "", err
	}
	_, err = f.Write(data)
	if err = errors.Join(err, f.Sync(), f.Close()); err != nil {
		return "", err
	}
	got, err := os.ReadFile(path)
	if err != nil {
		return "", err
	}
	if !bytes.Equal(got, data) {
		return "", errors.New("the file reads back differently")
	}
	if err := os.Remove(path); err != nil {
		return "", err
	}
	return fmt.Sprintf("%d KiB written, synced and read back in %s in %v", size>>10, dir, time.Since(start).Round(time.Millisecond)), nil
}
