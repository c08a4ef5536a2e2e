package cli

import (
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
)

// TestExitStatus is the table of docs/command.md, as far as a guest and the
// command line can bring each about.
func TestExitStatus(t *testing.T) {
	clitest.NeedKVM(t)
	for _, c := range []struct {
		args   string
		status int
		err    string // on standard error, one line; empty: nothing
	}{
		{"demo exit=0", 0, ""},
		{"demo exit=3", 3, ""},
		{"demo exit=255", 255, ""},
		{"demo exit=120", 120, ""},
		{"demo fault", 97, ""},
		{"demo nonsense", 2, "is no mode"},
		{"demo reboot=kbd", 120, "smolvmm: reboot: "},
		{"demo reboot=cf9", 120, "smolvmm: reboot: "},
		{"demo reboot=p92", 120, "smolvmm: reboot: "},
		{"demo triple", 121, "smolvmm: triple fault: vCPU 0 at rip 0x"},
		{"demo badop", 122, "smolvmm: KVM internal error: "},
		{"demo -timeout 100ms hlt", 124, "smolvmm: stopped: time is up after 100ms"},
		{"demo -timeout 100ms spin", 124, "smolvmm: stopped: time is up after 100ms"},
	} {
		t.Run(c.args, func(t *testing.T) {
			t.Parallel()
			r := clitest.Finish(t, clitest.Smolvmm(t, strings.Fields(c.args)...))
			lines := 1
			if c.err == "" {
				lines = 0
			}
			if r.Status != c.status || !strings.Contains(r.Err, c.err) || strings.Count(r.Err, "\n") != lines {
				t.Errorf("status %d, %q; want %d, %q", r.Status, r.Err, c.status, c.err)
			}
		})
	}
}

// TestRegisters: -v says more of an end that the guest did not choose.
func TestRegisters(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	r := clitest.Finish(t, clitest.Smolvmm(t, "demo", "-v", "triple"))
	if r.Status != 121 || !strings.Contains(strings.ToLower(r.Err), "rip") || !strings.Contains(strings.ToLower(r.Err), "cr3") {
		t.Errorf("%+v", r)
	}
}

// TestSignals: each ends the machine with one line and 128 and its number.
func TestSignals(t *testing.T) {
	for sig, name := range map[syscall.Signal]string{
		syscall.SIGINT: "SIGINT", syscall.SIGTERM: "SIGTERM", syscall.SIGHUP: "SIGHUP", syscall.SIGQUIT: "SIGQUIT",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			p := clitest.Start(t, "demo", "-trace", "-console", "file:"+filepath.Join(dir, "log"), "spin")
			p.Errs.Wait(t, `\(mark\)`) // before the guest runs, a signal ends the process alone
			if err := p.Kill(sig); err != nil {
				t.Fatal(err)
			}
			p.Ended(128 + int(sig))
			p.Errs.Wait(t, "\nsmolvmm: stopped: "+name+"\n")
		})
	}
}

// TestSecondSignal: when the end takes its time, as with a console whose reader
// is stuck, a second signal does not wait for it.
func TestSecondSignal(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	c := clitest.Smolvmm(t, "demo", "-trace", "print=2000000")
	_, w := clitest.Pipe(t) // nobody reads it, and it is full
	size, err := unix.FcntlInt(w.Fd(), unix.F_SETPIPE_SZ, 4096)
	if err != nil {
		t.Fatal(err)
	}
	if _, err := w.Write(make([]byte, size)); err != nil {
		t.Fatal(err)
	}
	c.Stdout = w
	errR, errW := clitest.Pipe(t)
	c.Stderr = errW
	errs := clitest.NewTranscript()
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	errW.Close()
	errs.From(errR)
	errs.Wait(t, `write 0x3f8 \(com1\)`)
	// Two of a kind might be taken for one.
	_ = c.Process.Signal(syscall.SIGTERM)
	_ = c.Process.Signal(syscall.SIGINT)
	_ = c.Wait()
	if got := clitest.StatusOfProcess(c.ProcessState); got != 128+15 && got != 128+2 {
		t.Errorf("status %d", got)
	}
	errs.Wait(t, "smolvmm: SIG(TERM|INT) while ending: stopped at once")
}

// TestClosedOutput: a reader that goes away ends the machine quietly.
func TestClosedOutput(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	path, env := clitest.Program()
	c := exec.CommandContext(t.Context(), path, "demo", "print=100000")
	c.Env = append(os.Environ(), env...)
	r, w := clitest.Pipe(t)
	c.Stdout = w
	var errs strings.Builder
	c.Stderr = &errs
	if err := c.Start(); err != nil {
		t.Fatal(err)
	}
	w.Close()
	if _, err := r.Read(make([]byte, 1)); err != nil {
		t.Fatal(err)
	}
	r.Close()
	_ = c.Wait()
	if got := clitest.StatusOfProcess(c.ProcessState); got != 128+int(syscall.SIGPIPE) || strings.Count(errs.String(), "\n") != 1 {
		t.Errorf("status %d:\n%s", got, errs.String())
	}
}

// TestInputs: whatever standard input is, a machine runs to its end on it.
func TestInputs(t *testing.T) {
	clitest.NeedKVM(t)
	shell, err := exec.LookPath("sh")
	if err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	empty := filepath.Join(t.TempDir(), "empty")
	typed := filepath.Join(t.TempDir(), "typed")
	// What comes before the guest's driver is up may be lost.
	for path, text := range map[string]string{empty: "", typed: "dd4\r\r\rquit\r"} {
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	for name, line := range map[string]string{
		"null device":   `"$0" demo hello </dev/null`,
		"closed":        `"$0" demo hello <&-`,
		"all closed":    `"$0" demo exit=0 <&- >&- 2>&-`,
		"empty file":    `"$0" demo hello <"` + empty + `"`,
		"file":          `"$0" demo echo <"` + typed + `"`,
		"pipe":          `printf '\r\r\rquit\r' | "$0" demo echo`,
		"ended pipe":    `: | "$0" demo hello`,
		"rest of file":  `{ dd bs=4 count=1 2>/dev/null; "$0" demo echo; } <"` + typed + `"`,
		"end goes on":   `printf x | "$0" demo -timeout 1s spin; test $? = 124`,
		"write-only fd": `"$0" demo hello 0>/dev/null`,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			c := clitest.Smolvmm(t)
			sh := exec.CommandContext(t.Context(), shell, "-c", line, c.Path)
			sh.Env = c.Env
			if r := clitest.Finish(t, sh); r.Status != 0 {
				t.Errorf("%+v", r)
			}
		})
	}
}
