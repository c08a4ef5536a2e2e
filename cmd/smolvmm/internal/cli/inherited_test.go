package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestInheritedFiles: what a parent left open is closed before the guest runs.
func TestInheritedFiles(t *testing.T) {
	clitest.NeedKVM(t)
	leaked := filepath.Join(t.TempDir(), "leaked")
	f, err := os.Create(leaked)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := clitest.Smolvmm(t, "demo", "touch=1,wait")
	c.ExtraFiles = []*os.File{f}
	c.Stdout = w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	defer c.Wait()
	defer c.Process.Kill()
	// The guest's first byte: it runs.
	if err := out.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	dir := filepath.Join("/proc", strconv.Itoa(c.Process.Pid), "fd")
	fds, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	seen := 0
	for _, e := range fds {
		at, err := os.Readlink(filepath.Join(dir, e.Name()))
		if err == nil && strings.HasPrefix(at, leaked) {
			t.Errorf("fd %s is still %s", e.Name(), at)
		}
		seen++
	}
	if seen < 5 {
		t.Errorf("only %d descriptors seen: this is not a machine", seen)
	}
}

// TestIgnoredSignal: nohup keeps its promise.
func TestIgnoredSignal(t *testing.T) {
	clitest.NeedKVM(t)
	out, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer out.Close()
	c := clitest.Smolvmm(t, "demo", "touch=1,wait")
	c.Args = append([]string{"sh", "-c", `trap "" HUP; exec "$0" "$@"`, c.Path}, c.Args[1:]...)
	if c.Path, err = exec.LookPath("sh"); err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	c.Stdout = w
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if err := out.SetReadDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := out.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	// SIGHUP is looked at before SIGTERM: signals of one process are taken in
	// the order of their numbers.
	if err := c.Process.Signal(syscall.SIGHUP); err != nil {
		t.Fatal(err)
	}
	if err := c.Process.Signal(syscall.SIGTERM); err != nil {
		t.Fatal(err)
	}
	_ = c.Wait()
	if got, want := c.ProcessState.ExitCode(), StatusSignal+int(syscall.SIGTERM); got != want {
		t.Errorf("exit status %d, want %d", got, want)
	}
}
