package main

import (
	"bufio"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"

	"github.com/smolvmm/smolvmm/bench/lab/internal/kernels"
)

// runStreams runs the command with pipes for both streams, hands each line of standard output to line as it comes, and
// returns the status and what was printed.
func runStreams(t *testing.T, args []string, line func(string)) (status int, stdout, stderr string) {
	t.Helper()
	var texts [2]strings.Builder
	var files [2]*os.File
	var wg sync.WaitGroup
	for i := range files {
		r, w, err := os.Pipe()
		must(t, err)
		files[i] = w
		wg.Go(func() {
			defer r.Close()
			in := bufio.NewReader(r)
			for {
				s, err := in.ReadString('\n')
				texts[i].WriteString(s)
				if i == 0 && line != nil {
					line(strings.TrimSpace(s))
				}
				if err != nil {
					if err != io.EOF {
						t.Error(err)
					}
					return
				}
			}
		})
	}
	status = run(args, files[0], files[1])
	files[0].Close()
	files[1].Close()
	wg.Wait()
	return status, texts[0].String(), texts[1].String()
}

// needLab skips where the lab is not set up, and returns static builds of the lab, for its init, and of the probe.
func needLab(t *testing.T) (lab, probe string) {
	t.Helper()
	if os.Getenv("SMOLVMM_LAB") != "" {
		t.Skip("SKIPPED: this is the lab")
	}
	cache, err := kernels.CacheDir()
	must(t, err)
	if _, _, err = kernels.CheckQEMU(); err == nil {
		_, err = kernels.Find(cache, "cloud")
	}
	if err != nil {
		t.Skipf("SKIPPED, no boot was tested: %v", err)
	}
	dir := t.TempDir()
	for _, b := range [][2]string{{"lab", "."}, {"probe", "./testdata/probe"}} {
		c := exec.Command("go", "build", "-o", filepath.Join(dir, b[0]), b[1])
		c.Env = append(os.Environ(), "CGO_ENABLED=0")
		if out, err := c.CombinedOutput(); err != nil {
			t.Fatalf("go build %s: %v\n%s", b[1], err, out)
		}
	}
	return filepath.Join(dir, "lab"), filepath.Join(dir, "probe")
}

func TestBoot(t *testing.T) {
	self, probe := needLab(t)
	initBinary = self
	defer func() { initBinary = "" }()
	dir := t.TempDir()
	drive := filepath.Join(dir, "drive.img")
	must(t, os.WriteFile(drive, make([]byte, 1<<20), 0o644))
	data := filepath.Join(dir, "data")
	must(t, os.WriteFile(data, []byte("12345"), 0o644))
	back := filepath.Join(dir, "back")
	wd, err := os.Getwd()
	must(t, err)

	for _, c := range []struct {
		name   string
		args   []string
		status int
		stdout []string // must be in it
		stderr []string
	}{
		{
			name: "what a program finds",
			args: []string{
				"-drive", drive, "-file", data + ":/etc/data", "-env", "EXTRA=x", "-out", "/tmp/out:" + back,
				probe, "-exit", "7", "-write", "/tmp/out", "-read", "/etc/data",
			},
			status: 7,
			stdout: []string{"wd " + wd + " <nil>", "lab 1 extra x", "kvm version 12, a machine", "drive 1048576 true", "read 5 true", "pivot works"},
			stderr: []string{"on the other stream\n"},
		},
		{
			name:   "the package's folder is there",
			args:   []string{probe, "-exit", "0", "-read", "testdata/probe/main.go"},
			status: 0,
			stdout: []string{"read ", " true"},
		},
		{
			name:   "ended by a signal",
			args:   []string{probe, "-kill"},
			status: 137,
			stderr: []string{"lab: the program was ended by signal 9 (killed)"},
		},
		{
			name:   "kernel panic",
			args:   []string{probe, "-panic"},
			status: exitLab,
			stderr: []string{"lab: the lab's machine ended before the program did (kernel panic: not syncing: sysrq triggered crash)"},
		},
		{
			name: "timeout",
			// Long enough for a boot on a machine that does much else.
			args:   []string{"-timeout", "20s", probe, "-hang"},
			status: exitTimeout,
			stdout: []string{"got quit"},
			stderr: []string{"lab: timeout: the program was still running after 20s"},
		},
		{
			name:   "timeout before the program",
			args:   []string{"-timeout", "100ms", probe},
			status: exitTimeout,
			stderr: []string{"lab: timeout: the program had not started after 100ms"},
		},
		{
			name:   "a module that is not there",
			args:   []string{"-modules", "no_such_module", probe},
			status: exitLab,
			stderr: []string{"lab: the kernel has no module no_such_module"},
		},
		{
			name:   "too little memory",
			args:   []string{"-m", "256", "-file", bigFile(t), probe},
			status: exitLab,
			stderr: []string{"do not fit in -m 256"},
		},
	} {
		t.Run(c.name, func(t *testing.T) {
			status, stdout, stderr := runStreams(t, c.args, nil)
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			for _, w := range c.stdout {
				if !strings.Contains(stdout, w) {
					t.Errorf("standard output lacks %q", w)
				}
			}
			for _, w := range c.stderr {
				if !strings.Contains(stderr, w) {
					t.Errorf("standard error lacks %q", w)
				}
			}
			if c.status == 7 && stderr != c.stderr[0] {
				t.Errorf("standard error has more than the program's: %q", stderr)
			}
			if t.Failed() {
				t.Logf("standard output:\n%s\nstandard error:\n%s", stdout, stderr)
			}
		})
	}
	if b, err := os.ReadFile(back); string(b) != "from the lab\n" {
		t.Errorf("brought back: %q, %v", b, err)
	}

	t.Run("interrupt", func(t *testing.T) {
		status, stdout, stderr := runStreams(t, []string{probe, "-hang", "-exit", "5"}, func(line string) {
			if line == "waiting" {
				if err := syscall.Kill(os.Getpid(), syscall.SIGINT); err != nil {
					t.Error(err)
				}
			}
		})
		if status != 5 || !strings.Contains(stdout, "got interrupt") {
			t.Errorf("status %d, want 5 and the program's word of the interrupt:\n%s\n%s", status, stdout, stderr)
		}
	})

	t.Run("much output", func(t *testing.T) {
		const n = 8 << 20
		status, stdout, stderr := runStreams(t, []string{probe, "-flood", "8388608", "-exit", "0"}, nil)
		if status != 0 || len(stdout) != n || strings.Count(stdout, "\n") != n/64 {
			t.Errorf("status %d, %d bytes in %d lines; want 0, %d in %d: %s", status, len(stdout), strings.Count(stdout, "\n"), n, n/64, stderr)
		}
	})
}

// bigFile is a sparse file that does not fit in 256 MiB twice.
func bigFile(t *testing.T) string {
	p := filepath.Join(t.TempDir(), "big")
	must(t, os.WriteFile(p, nil, 0o644))
	must(t, os.Truncate(p, 128<<20))
	return p
}
