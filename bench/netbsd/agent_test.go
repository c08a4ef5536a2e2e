package netbsd

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/bench/internal/agenttest"
	"github.com/smolvmm/smolvmm/bench/testimg"
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
	program := agenttest.Smolvmm{Program: h.Smolvmm, Dir: t.TempDir()}
	program.Home(t)
	smolvmm := func(stdin io.Reader, args ...string) (out, errs string, status int) {
		t.Helper()
		return program.Run(t, stdin, args...)
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
			program.Commands(t, name)
			program.Terminal(t, name)
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
