package disk

import (
	"bufio"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"strings"
	"testing"
)

const holderEnv = "SMOLVMM_TEST_LOCK_HOLDER"

// TestMain turns the test binary into a holder of a lock when asked to: it
// opens the disk, says so, and holds it until its input ends.
func TestMain(m *testing.M) {
	spec, ok := os.LookupEnv(holderEnv)
	if !ok {
		os.Exit(m.Run())
	}
	path, ro := strings.CutSuffix(spec, ",ro")
	d, err := Open(Options{Path: path, ReadOnly: ro})
	if err != nil {
		fmt.Println(err)
		os.Exit(1)
	}
	fmt.Println("holding")
	bufio.NewReader(os.Stdin).ReadByte()
	d.Close()
}

// hold starts a process that has the disk open.
func hold(t *testing.T, spec string) (pid int, release func()) {
	t.Helper()
	exe, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(exe)
	cmd.Env = append(os.Environ(), holderEnv+"="+spec)
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	if line, _ := bufio.NewReader(out).ReadString('\n'); line != "holding\n" {
		t.Fatalf("the holder says %q", line)
	}
	done := false
	release = func() {
		if !done {
			done = true
			in.Close()
			cmd.Wait()
		}
	}
	t.Cleanup(release)
	return cmd.Process.Pid, release
}

func TestLockNamesItsHolder(t *testing.T) {
	path, _ := image(t, 4096)
	pid, release := hold(t, path)
	for _, o := range []Options{{Path: path}, {Path: path, ReadOnly: true}, {Path: path, Overlay: true}} {
		d, err := Open(o)
		if err == nil {
			d.Close()
			t.Fatalf("%+v: opened a disk that another process writes", o)
		}
		var le *LockedError
		if !errors.As(err, &le) || len(le.Holders) != 1 || le.Holders[0].PID != pid || !le.Holders[0].Writes {
			t.Fatalf("%v: want pid %d", err, pid)
		}
		for _, want := range []string{path, fmt.Sprintf("pid %d (disk.test)", pid), "which writes it"} {
			if !strings.Contains(err.Error(), want) {
				t.Errorf("error %q lacks %q", err, want)
			}
		}
	}
	release()
	open(t, Options{Path: path})
}

func TestReadersShare(t *testing.T) {
	path, _ := image(t, 4096)
	pid, release := hold(t, path+",ro")
	open(t, Options{Path: path, ReadOnly: true}).Close()
	open(t, Options{Path: path, Overlay: true}).Close()
	_, err := Open(Options{Path: path})
	if err == nil || !strings.Contains(err.Error(), fmt.Sprintf("pid %d (disk.test) for reading", pid)) {
		t.Fatalf("a writer beside a reader: %v", err)
	}
	release()
	open(t, Options{Path: path})
}

func TestOverlayFileIsLocked(t *testing.T) {
	path, _ := image(t, 4096)
	ov := path + ".changes"
	open(t, Options{Path: path, Overlay: true, OverlayPath: ov})
	_, err := Open(Options{Path: path, Overlay: true, OverlayPath: ov})
	if err == nil || !strings.Contains(err.Error(), ov) || !strings.Contains(err.Error(), "this very process") {
		t.Fatalf("one overlay file twice: %v", err)
	}
}

func TestParseLocks(t *testing.T) {
	const locks = `1: FLOCK  ADVISORY  WRITE 100 08:0a:262144 0 EOF
1: -> FLOCK  ADVISORY  WRITE 101 08:0a:262144 0 EOF
2: POSIX  ADVISORY  WRITE 102 08:0a:262144 0 EOF
3: FLOCK  ADVISORY  READ 103 00:1f:262144 0 EOF
4: FLOCK  ADVISORY  READ 104 08:0a:262145 0 EOF
5: FLOCK  ADVISORY  READ 0 08:0a:262146 0 EOF
6: FLOCK  ADVISORY  READ -1 08:0a:262146 0 EOF
7: FLOCK
8: FLOCK  ADVISORY  READ x 08:0a:262146 0 EOF
9: FLOCK  ADVISORY  READ 105 262146 0 EOF
10: FLOCK  ADVISORY  READ 106 08:0a:262145 0 EOF
`
	for _, c := range []struct {
		major, minor uint32
		ino          uint64
		want         string
	}{
		{8, 10, 262144, "[pid 100]"},
		{8, 10, 262145, "[pid 104 pid 106]"},
		{0, 99, 262144, "[pid 100 pid 103]"}, // another number in stat than there
		{8, 10, 262146, "[]"},
		{8, 10, 7, "[]"},
	} {
		if got := fmt.Sprint(parseLocks(strings.NewReader(locks), c.major, c.minor, c.ino)); got != c.want {
			t.Errorf("%d:%d:%d: %s, want %s", c.major, c.minor, c.ino, got, c.want)
		}
	}
}

func TestLockedErrorText(t *testing.T) {
	for _, c := range []struct {
		e    LockedError
		want string
	}{
		{LockedError{}, "another process, which writes"},
		{LockedError{Exclusive: true}, "another process for reading"},
		{LockedError{Exclusive: true, Holders: []Holder{{1, "a", false}, {2, "b", true}, {3, "", false}, {4, "", false}, {5, "", false}}},
			"pid 1 (a), pid 2 (b), pid 3 and 2 more, which writes"},
	} {
		if got := c.e.Error(); !strings.Contains(got, c.want) {
			t.Errorf("%q lacks %q", got, c.want)
		}
	}
	if got := printable([]byte("a\x1b[31m\xffb")); got != "a?[31m?b" {
		t.Errorf("printable: %q", got)
	}
}
