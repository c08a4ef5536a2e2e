package netbsd

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/bench/testimg"
	"github.com/smolvmm/smolvmm/vmm/agent"
	"github.com/smolvmm/smolvmm/vmm/client"
)

const agentHostVar = "SMOLVMM_NETBSD_AGENT"

// TestAgent boots NetBSD by `smolvmm run`, here or in the lab, and speaks with it
// by exec, cp and stop. TestAgentOnHost is what it runs.
func TestAgent(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD")
	}
	kernel, err := Kernel()
	need(t, err)
	dir := t.TempDir()
	spec, err := testimg.Default(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	check, err := testimg.Program(t.Context(), testimg.Module+"/bench/netbsd/agentcheck")
	if err != nil {
		t.Fatal(err)
	}
	spec.Files = append(spec.Files, testimg.File{Path: "/bin/agentcheck", Data: check, Mode: 0o755})
	h := netHost{Kernel: kernel, Smolvmm: filepath.Join(dir, "smolvmm"), Image: filepath.Join(dir, "root.img")}
	if err := testimg.Build(t.Context(), h.Image, spec); err != nil {
		t.Fatal(err)
	}
	need(t, Program(t.Context(), h.Smolvmm, "cmd/smolvmm/smolvmm-full"))
	said := onHost(t, h, agentHostVar, "TestAgentOnHost", dir)
	t.Logf("%s", said)
}

// onHost runs a test of this program where KVM is complete: here, or in the lab
// with what it needs.
func onHost(t *testing.T, h netHost, variable, test, dir string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	argv := []string{self, "-test.run=^" + test + "$", "-test.v", "-test.timeout=14m"}
	if err := KVM(); err != nil {
		t.Logf("in the lab: %v", err)
		lab, err := Lab(t.Context(), dir)
		need(t, err)
		put := []string{lab, "-timeout", "15m", "-m", "3072", "-env", variable}
		for _, f := range []*string{&h.Kernel, &h.Smolvmm, &h.Image} {
			there := "/t/" + filepath.Base(*f)
			put = append(put, "-file", *f+":"+there)
			*f = there
		}
		h.Lab = true
		argv = append(put, argv...)
	}
	env, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = t.TempDir() // the lab puts it in
	cmd.Env = append(os.Environ(), variable+"="+string(env))
	said, err := cmd.CombinedOutput()
	if err != nil || !bytes.Contains(said, []byte("--- PASS: "+test)) {
		t.Fatalf("%v\n%s", err, said)
	}
	return string(said)
}

// TestAgentOnHost is the host's side: smolvmm's own commands, and the Go API.
func TestAgentOnHost(t *testing.T) {
	env := os.Getenv(agentHostVar)
	if env == "" {
		t.Skip("run by TestAgent")
	}
	var h netHost
	if err := json.Unmarshal([]byte(env), &h); err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	home := []string{"XDG_DATA_HOME=" + filepath.Join(dir, "data"), "XDG_RUNTIME_DIR=" + filepath.Join(dir, "run"), "HOME=" + dir, "PATH=/usr/bin:/bin"}
	if err := os.Mkdir(filepath.Join(dir, "run"), 0o700); err != nil {
		t.Fatal(err)
	}
	smolvmm := func(stdin io.Reader, args ...string) (out, errs string, status int) {
		t.Helper()
		ctx, cancel := context.WithTimeout(t.Context(), 5*time.Minute)
		defer cancel()
		cmd := exec.CommandContext(ctx, h.Smolvmm, args...)
		var o, e bytes.Buffer
		cmd.Env, cmd.Stdin, cmd.Stdout, cmd.Stderr = home, stdin, &o, &e
		begun := time.Now()
		_ = cmd.Run()
		t.Logf("smolvmm %s: status %d, %v %.300s", strings.Join(args, " "), cmd.ProcessState.ExitCode(), time.Since(begun).Round(time.Millisecond), &e)
		return o.String(), e.String(), cmd.ProcessState.ExitCode()
	}
	defer smolvmm(nil, "cleanup", "--all")
	for _, netArgs := range [][]string{nil, {"-net", "none"}} {
		name := fmt.Sprint("m", len(netArgs))
		args := append(append([]string{"run", "-d", "--name", name, "--ready", "agent", "-kernel", h.Kernel, "-disk", h.Image + ",overlay", "-m", "128"}, netArgs...), "--", "agentcheck", "wait")
		if out, errs, st := smolvmm(nil, args...); st != 0 || strings.TrimSpace(out) != name {
			t.Fatalf("%q %q %d", out, errs, st)
		}
		if out, _, st := smolvmm(nil, "exec", name, "agentcheck", "exit", "3", "words"); st != 3 {
			t.Errorf("%q %d", out, st)
		}
		if t.Failed() {
			logs, _, _ := smolvmm(nil, "logs", name)
			monitor, _, _ := smolvmm(nil, "logs", "--monitor", name)
			t.Fatalf("the console:\n%s\n%s", logs, monitor)
		}
		if name == "m0" {
			agentRows(t, dir, smolvmm)
			terminal(t, filepath.Join(dir, "run", "smolvmm", "machines", "m0", "api.sock"))
		}
		if _, errs, st := smolvmm(nil, "stop", "-t", "60s", name); st != 0 {
			t.Errorf("stop: %q %d", errs, st)
		}
		if out, _, _ := smolvmm(nil, "logs", name); !strings.Contains(out, "agentcheck: got terminated") {
			t.Errorf("the command was not asked to end:\n%s", out)
		}
		if out, _, st := smolvmm(nil, "wait", name); st != 0 || strings.TrimSpace(out) != "0" {
			t.Errorf("wait: %q %d", out, st)
		}
		if _, errs, st := smolvmm(nil, "exec", name, "true"); st != 2 || !strings.Contains(errs, "has ended") {
			t.Errorf("exec after the end: %q %d", errs, st)
		}
	}
}

// agentRows are the commands that machine m0 is asked for.
func agentRows(t *testing.T, dir string, smolvmm func(io.Reader, ...string) (string, string, int)) {
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
		{nil, "exec m0 agentcheck exit 7 words", "", "words\n", 7},
		{nil, "exec -e A=b -w /tmp -u 12:34 m0 agentcheck env A HOME", "A=b\nHOME=/\ndir=/tmp uid=12 gid=34\n", "", 0},
		{bytes.NewReader(data), "exec -i m0 agentcheck cat", string(data), "", 0},
		{nil, "exec m0 nosuch", "", "smolvmm: machine m0: nosuch: no such command\n", 127},
		{nil, "exec m0 /etc", "", "smolvmm: machine m0: /etc: not a program that can be run\n", 126},
		{nil, "exec -t m0 agentcheck tty", "", "smolvmm: -t: standard input is no terminal\n", 2},
	} {
		out, errs, st := smolvmm(c.stdin, strings.Fields(c.args)...)
		if out != c.out || errs != c.errs || st != c.status {
			t.Errorf("%s: %d bytes %.100q, %q, status %d", c.args, len(out), out, errs, st)
		}
	}
	src := filepath.Join(dir, "src")
	if err := os.MkdirAll(filepath.Join(src, "sub"), 0o750); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(src, "sub/data"), data, 0o640); err != nil {
		t.Fatal(err)
	}
	if _, errs, st := smolvmm(nil, "cp", src, "m0:/tmp/there"); st != 0 {
		t.Errorf("cp in: %q %d", errs, st)
	}
	if _, errs, st := smolvmm(nil, "cp", "m0:/tmp/there", filepath.Join(dir, "back")); st != 0 {
		t.Errorf("cp out: %q %d", errs, st)
	}
	got, err := os.ReadFile(filepath.Join(dir, "back/sub/data"))
	info, serr := os.Stat(filepath.Join(dir, "back/sub/data"))
	if err != nil || serr != nil || sha256.Sum256(got) != sha256.Sum256(data) || info.Mode().Perm() != 0o640 {
		t.Errorf("%d bytes came back, %v %v", len(got), err, serr)
	}
	if _, errs, st := smolvmm(nil, "cp", "m0:/no/such", dir); st != 125 || !strings.Contains(errs, "no such file") {
		t.Errorf("cp of nothing: %q %d", errs, st)
	}
}

// terminal has a command on a terminal of the guest's, whose size changes.
func terminal(t *testing.T, socket string) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	begun := time.Now()
	stream, err := client.New(socket).Agent(ctx)
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
