package netbsd

import (
	"bytes"
	"context"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/testimg"
)

// need skips where err says that something is missing, and fails for the rest.
func need(t *testing.T, err error) {
	t.Helper()
	if errors.Is(err, ErrMissing) {
		t.Skip("NOT RUN: " + err.Error())
	}
	if err != nil {
		t.Fatal(err)
	}
}

// place is where machines are made: here, or in a fresh lab for each.
type place struct {
	smolvmm, lab, kernel string
	dir                  string // empty: the lab puts the working directory in
}

// boot runs smolvmm with a root disk on virtio-blk, which the guest writes to,
// and gives its console and exit status.
func (p place) boot(t *testing.T, image string, files map[string]string, env []string, args ...string) (string, int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 12*time.Minute)
	defer cancel()
	var argv []string
	place := func(file string) string { return file }
	if p.lab != "" {
		place = func(file string) string { return "/t/" + filepath.Base(file) }
		// A processor for each of the guest's: they wait for each other in loops.
		argv = []string{p.lab, "-timeout", "10m", "-cpus", "4", "-file", p.kernel + ":" + place(p.kernel), "-file", image + ":" + place(image), "-out", place(image) + ":" + image}
		for _, f := range files {
			argv = append(argv, "-file", f+":"+place(f))
		}
		for _, e := range env {
			argv = append(argv, "-env", e)
		}
	}
	argv = append(argv, p.smolvmm, "-kernel", place(p.kernel), "-disk", place(image), "-timeout", "300s")
	for name, f := range files {
		argv = append(argv, "-E", name+"="+place(f))
	}
	argv = append(argv, args...)
	cmd := exec.CommandContext(ctx, argv[0], argv[1:]...)
	cmd.Dir = p.dir
	cmd.Env = append(os.Environ(), env...)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	err := cmd.Run()
	var ee *exec.ExitError
	if err != nil && (!errors.As(err, &ee) || !ee.Exited()) {
		t.Fatalf("%v\n%s", err, out.String())
	}
	return out.String(), cmd.ProcessState.ExitCode()
}

// TestNetBSD boots NetBSD to smolinit with its root on virtio-blk. The command
// that the host names runs with its environment, file and secret, finds the
// processors, writes to the disk, and its status is smolvmm's.
func TestNetBSD(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD")
	}
	p := place{dir: t.TempDir()}
	var err error
	p.kernel, err = Kernel()
	need(t, err)
	dir := t.TempDir()
	p.smolvmm = filepath.Join(dir, "smolvmm")
	need(t, Program(t.Context(), p.smolvmm, "cmd/smolvmm"))
	if err := KVM(); err != nil {
		t.Logf("in the lab: %v", err)
		p.lab, err = Lab(t.Context(), dir)
		need(t, err)
	}
	e2fsck, err := findTool("e2fsck")
	need(t, err)
	_, err = findTool("mke2fs")
	need(t, err)
	spec, err := testimg.Default(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	note := filepath.Join(dir, "note")
	if err := os.WriteFile(note, []byte("a note"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		name   string
		cpus   int
		status int
		args   []string // of guestcheck
		says   []string
	}{
		{"1 CPU", 1, 0, []string{"-file", "/run/smolvmm/files/note=a note"},
			[]string{"environment: GREETING=hello world", "file: /run/smolvmm/files/note"}},
		{"4 CPUs", 4, 7, []string{"-file", "/run/secrets/TOKEN=s3cret", "-size", "2"},
			[]string{"environment: GREETING=hello world", "file: /run/secrets/TOKEN, mode -r--------"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			image := filepath.Join(t.TempDir(), "root.img")
			if err := testimg.Build(t.Context(), image, spec); err != nil {
				t.Fatal(err)
			}
			args := []string{"-m", "256", "-cpus", strconv.Itoa(c.cpus), "-e", "GREETING=hello world", "--secret", "TOKEN",
				"--", "guestcheck", "-status", strconv.Itoa(c.status), "-cpus", strconv.Itoa(c.cpus), "-env", "GREETING=hello world"}
			console, status := p.boot(t, image, map[string]string{"note": note}, []string{"TOKEN=s3cret"}, append(args, c.args...)...)
			if status != c.status {
				t.Errorf("status %d, want %d", status, c.status)
			}
			for _, s := range append(c.says, "smolinit: running /bin/guestcheck", "cpus: "+strconv.Itoa(c.cpus)+",",
				"written, synced and read back in /", "guestcheck: ok, status "+strconv.Itoa(c.status)) {
				if !strings.Contains(console, s) {
					t.Errorf("the console lacks %q", s)
				}
			}
			if t.Failed() {
				t.Log(console)
			}
			// What the guest did is in the file, and consistent.
			if out, err := exec.Command(e2fsck, "-f", "-n", image).CombinedOutput(); err != nil {
				t.Errorf("e2fsck: %v\n%s", err, out)
			}
		})
	}
}

// findTool looks where programs for administrators are, too.
func findTool(name string) (string, error) {
	for _, p := range []string{name, "/usr/sbin/" + name, "/sbin/" + name} {
		if found, err := exec.LookPath(p); err == nil {
			return found, nil
		}
	}
	return "", errors.Join(ErrMissing, errors.New(name+" (package e2fsprogs)"))
}

func TestKernelIsTheNewest(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	if _, err := Kernel(); !errors.Is(err, ErrMissing) {
		t.Errorf("an empty cache: %v", err)
	}
	for _, r := range []string{"9.4", "10.99.12", "11.0", "10.1"} {
		dir := filepath.Join(cache, "smolvmm", "kernels", r)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, kernelName), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if k, err := Kernel(); err != nil || filepath.Base(filepath.Dir(k)) != "11.0" {
		t.Errorf("%s, %v", k, err)
	}
}
