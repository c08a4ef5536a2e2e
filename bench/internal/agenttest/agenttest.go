// Package agenttest has what every guest's agent is asked in a test: commands,
// copies and a terminal. The guest has bench/netbsd/agentcheck in its PATH.
package agenttest

import (
	"bytes"
	"context"
	"crypto/sha256"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// Smolvmm runs smolvmm's commands in a home of their own.
type Smolvmm struct {
	Program string
	Dir     string // a folder for all that they write; Home makes what must be in it
}

// Home makes the folder of the sockets.
func (s Smolvmm) Home(t *testing.T) {
	t.Helper()
	if err := os.Mkdir(filepath.Join(s.Dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
}

// Run runs a command and gives what it said, and its status.
func (s Smolvmm) Run(t *testing.T, stdin io.Reader, args ...string) (out, errs string, status int) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, s.Program, args...)
	var o, e bytes.Buffer
	cmd.Env = []string{"XDG_DATA_HOME=" + filepath.Join(s.Dir, "data"), "XDG_RUNTIME_DIR=" + filepath.Join(s.Dir, "run"), "HOME=" + s.Dir, "PATH=/usr/bin:/bin"}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = stdin, &o, &e
	begun := time.Now()
	_ = cmd.Run()
	t.Logf("smolvmm %s: status %d, %v %.300s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), time.Since(begun).Round(time.Millisecond), &e)
	return o.String(), e.String(), cmd.ProcessState.ExitCode()
}

// Commands runs commands in the machine name, and copies a folder there and back.
func (s Smolvmm) Commands(t *testing.T, name string) {
	t.Helper()
	data := make([]byte, 2<<20)
	_, _ = rand.NewChaCha8([32]byte{1}).Read(data)
	copy(data[1<<20:], make([]byte, 64<<10)) // a hole
	for _, c := range []struct {
		stdin  io.Reader
		args   string
		out    string
		errs   string
		status int
	}{
		{nil, "exec NAME agentcheck exit 7 words", "", "words\n", 7},
		{nil, "exec -e A=b -w /tmp -u 12:34 NAME agentcheck env A HOME", "A=b\nHOME=/\ndir=/tmp uid=12 gid=34\n", "", 0},
		{bytes.NewReader(data), "exec -i NAME agentcheck cat", string(data), "", 0},
		{nil, "exec NAME nosuch", "", "smolvmm: machine NAME: nosuch: no such command\n", 127},
		{nil, "exec NAME /etc", "", "smolvmm: machine NAME: /etc: not a program that can be run\n", 126},
		{nil, "exec -t NAME agentcheck tty", "", "smolvmm: -t: standard input is no terminal\n", 2},
	} {
		words := strings.Fields(strings.ReplaceAll(c.args, "NAME", name))
		out, errs, st := s.Run(t, c.stdin, words...)
		if out != c.out || errs != strings.ReplaceAll(c.errs, "NAME", name) || st != c.status {
			t.Errorf("%s: %d bytes %.100q, %q, status %d", c.args, len(out), out, errs, st)
		}
	}
	src := filepath.Join(s.Dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "sub/data"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, errs, st := s.Run(t, nil, "cp", src, name+":/tmp/there"); st != 0 {
		t.Errorf("cp in: %q %d", errs, st)
	}
	if _, errs, st := s.Run(t, nil, "cp", name+":/tmp/there", filepath.Join(s.Dir, "back")); st != 0 {
		t.Errorf("cp out: %q %d", errs, st)
	}
	got, err := os.ReadFile(filepath.Join(s.Dir, "back/sub/data"))
	info, serr := os.Stat(filepath.Join(s.Dir, "back/sub/data"))
	if err != nil || serr != nil || sha256.Sum256(got) != sha256.Sum256(data) || info.Mode().Perm() != 0o640 {
		t.Errorf("%d bytes came back, %v %v", len(got), err, serr)
	}
	if _, errs, st := s.Run(t, nil, "cp", name+":/no/such", s.Dir); st != 125 || !strings.Contains(errs, "no such file") {
		t.Errorf("cp of nothing: %q %d", errs, st)
	}
}

// Terminal has a command on a terminal of the guest's, whose size changes.
func (s Smolvmm) Terminal(t *testing.T, name string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	stream, err := client.New(filepath.Join(s.Dir, "run", "smolvmm", "machines", name, "api.sock")).Agent(ctx)
	if err != nil {
		t.Fatal(err)
	}
	in, keys := io.Pipe()
	out, w := io.Pipe()
	p, err := agent.Start(ctx, stream, agent.Command{Argv: []string{"agentcheck", "tty"}, TTY: &agent.Size{Rows: 30, Cols: 90}, Stdin: in, Stdout: w})
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("a command on a terminal began after %v", time.Since(begun).Round(time.Microsecond))
	wait := func(s string) {
		t.Helper()
		var b bytes.Buffer
		for one := make([]byte, 1); !strings.Contains(b.String(), s); b.Write(one) {
			if _, err := out.Read(one); err != nil {
				t.Fatalf("%v after %q", err, &b)
			}
		}
	}
	wait("size 30 90\r\n")
	if err := p.Resize(agent.Size{Rows: 40, Cols: 100}); err != nil {
		t.Fatal(err)
	}
	wait("size 40 100\r\n")
	if _, err := io.WriteString(keys, "quit\r"); err != nil {
		t.Fatal(err)
	}
	wait("bye")
	go io.Copy(io.Discard, out)
	if st, err := p.Wait(); err != nil || st.Code != 0 {
		t.Errorf("%+v, %v", st, err)
	}
}
