package main

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/clitest"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// TestAPIConfined: a machine that is booted by flags answers everything under a
// jail that ends the process at the first call that it does not allow.
func TestAPIConfined(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket := filepath.Join(dir, "s")
	p := clitest.Start(t, "-kernel", clitest.DemoKernel(t, dir), "-a", "demo=count", "-m", "64", "-disk", clitest.Scratch(t, 1<<20), "-console", "file:"+filepath.Join(dir, "out"),
		"-p", "0:80", "-confine", "trap", "--api-sock", socket, "--id", "m", "--metrics-addr", "127.0.0.1:0", "--log-format", "json", "-v")
	addr := p.Errs.Wait(t, `metrics on (http://127\.0\.0\.1:\d+/metrics)`)
	if st, err := os.Stat(socket); err != nil || st.Mode().Perm() != 0o600 {
		t.Fatalf("the socket: %v, %v", st, err)
	}
	c := client.New(socket)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	for e, err := range c.Events(ctx) {
		if err != nil {
			t.Fatal(err)
		}
		if e.Event == client.EventStarted {
			break
		}
	}
	info, err := c.Info(ctx)
	if err != nil || info.State != client.Running || info.PID != p.Pid || info.Memory.Guest != 64<<20 || info.Memory.Resident == 0 || info.CPUTimeMS == 0 ||
		len(info.Ports) != 1 || info.Ports[0].Guest != "80" {
		t.Errorf("%+v, %v", info, err)
	}
	for range 3 {
		if err := errors.Join(c.Pause(ctx), c.Resume(ctx)); err != nil {
			t.Fatal(err)
		}
	}
	for _, get := range []func() ([]byte, error){
		func() ([]byte, error) { return c.Metrics(ctx) },
		func() ([]byte, error) {
			resp, err := http.Get(regexp.MustCompile(`http://\S+`).FindString(addr))
			if err != nil {
				return nil, err
			}
			defer resp.Body.Close()
			return io.ReadAll(resp.Body)
		},
	} {
		text, err := get()
		if err != nil || !regexp.MustCompile(`(?m)^smolvmm_vcpu_exits_total\{vcpu="0",kind="io_out"\} [1-9]`).Match(text) ||
			!regexp.MustCompile(`(?m)^smolvmm_interrupts_total\{device="disk0"\} [0-9]`).Match(text) {
			t.Errorf("metrics: %v\n%s", err, text)
		}
	}
	var refused *client.Error
	if err := c.SetMachineConfig(ctx, client.MachineConfig{CPUs: 1, MemoryMiB: 64}); !errors.As(err, &refused) || refused.Status != 400 {
		t.Errorf("configured after the start: %v", err)
	}
	if _, err := c.Agent(ctx); !errors.As(err, &refused) || refused.Status != 501 {
		t.Errorf("agent: %v", err)
	}
	ended := make(chan client.Exit, 1)
	go func() {
		e, _ := c.Wait(ctx)
		ended <- e
	}()
	if asked, err := c.Stop(ctx, time.Minute); err != nil || asked {
		t.Errorf("stop: %v, %v", asked, err)
	}
	p.Ended(128 + int(syscall.SIGKILL))
	if e := <-ended; e.Status != 137 || e.Kind != "stopped" {
		t.Errorf("told of the end: %+v", e)
	}
	if _, err := os.Stat(socket); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is left: %v", err)
	}
	for line := range strings.Lines(p.Errs.String()) {
		if strings.HasPrefix(line, "{") && !json.Valid([]byte(line)) {
			t.Errorf("no line of JSON: %q", line)
		}
	}
	if !strings.Contains(p.Errs.String(), `"msg":"kernel loaded"`) {
		t.Errorf("the log is not JSON:\n%s", p.Errs)
	}
}

// TestAPIFlows: what is open through a published port and a socket of the vsock's can
// be seen, in the jail.
func TestAPIFlows(t *testing.T) {
	t.Parallel()
	dir := t.TempDir()
	socket, sock := filepath.Join(dir, "s"), filepath.Join(dir, "v")
	p := clitest.Start(t, "-kernel", clitest.DemoKernel(t, dir), "-a", "demo=nettcp=serve", "-m", "64", "-console", "file:"+filepath.Join(dir, "out"),
		"-p", "0:5001", "-vsock", "3,"+sock, "-confine", "trap", "--api-sock", socket)
	addr := p.Errs.Wait(t, `published: tcp (127\.0\.0\.1:\d+)`)
	conn, err := net.Dial("tcp", regexp.MustCompile(`127\S+`).FindString(addr))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(30 * time.Second)); err != nil {
		t.Fatal(err)
	}
	if _, err := io.WriteString(conn, "echo\nthere and back\n"); err != nil {
		t.Fatal(err)
	}
	if line, err := bufio.NewReader(conn).ReadString('\n'); err != nil || line != "there and back\n" {
		t.Fatalf("%q, %v", line, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := client.New(socket)
	flows, err := c.Flows(ctx, 0)
	if err != nil || len(flows) != 1 || flows[0].Protocol != "tcp" || flows[0].Guest != "10.0.2.15:5001" || !flows[0].Inbound ||
		flows[0].Sent != 15 || flows[0].Received != 20 || time.Since(flows[0].Since) > time.Minute {
		t.Errorf("%+v, %v", flows, err)
	}
	// This guest does not drive its vsock: who calls is not let in.
	v, err := net.Dial("unix", sock)
	if err != nil {
		t.Fatal(err)
	}
	defer v.Close()
	text, err := c.Metrics(ctx)
	if err != nil || !strings.Contains(string(text), "\nsmolvmm_vsock_connections 0\n") {
		t.Errorf("%v\n%s", err, text)
	}
	if err := c.Kill(ctx); err != nil {
		t.Error(err)
	}
	p.Ended(137)
}

// TestAPIACPI: a guest that is described over the socket is told of its devices by
// ACPI where that is asked for: then its command line names none.
func TestAPIACPI(t *testing.T) {
	t.Parallel()
	for _, acpi := range []bool{false, true} {
		dir := t.TempDir()
		socket, out := filepath.Join(dir, "s"), filepath.Join(dir, "out")
		p := clitest.Start(t, "--api-sock", socket, "-console", "file:"+out, "-v")
		ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
		defer cancel()
		c := client.New(socket)
		for {
			_, err := c.Info(ctx)
			if err == nil {
				break
			}
			if !errors.Is(err, client.ErrGone) {
				t.Fatal(err)
			}
			time.Sleep(time.Millisecond) // until it listens: nobody says so
		}
		if err := errors.Join(c.SetMachineConfig(ctx, client.MachineConfig{CPUs: 1, MemoryMiB: 64}),
			c.SetBootSource(ctx, client.BootSource{Kernel: clitest.DemoKernel(t, dir), BootArgs: "demo=check"}),
			c.SetDrive(ctx, client.Drive{ID: "root", Path: clitest.Scratch(t, 16<<20), Root: true}),
			c.SetBootOptions(ctx, client.BootOptions{ACPI: acpi}), c.Start(ctx)); err != nil {
			t.Fatal(err)
		}
		p.Ended(0)
		text, err := os.ReadFile(out)
		if err != nil {
			t.Fatal(err)
		}
		if found := strings.Contains(string(text), "demo: ok blk dev=0"); found == acpi {
			t.Errorf("acpi %v: the guest says\n%s", acpi, text)
		}
	}
}

// TestAPIWaits: without a kernel the process waits, survives a start that fails,
// and ends by signal or kill without leaving its socket.
func TestAPIWaits(t *testing.T) {
	for _, how := range []string{"signal", "kill", "SIGKILL", "the guest"} {
		t.Run(how, func(t *testing.T) {
			t.Parallel()
			dir := t.TempDir()
			socket := filepath.Join(dir, "s")
			p := clitest.Start(t, "--api-sock", socket, "-console", "none", "-confine", "trap", "-v")
			c := client.New(socket)
			ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
			defer cancel()
			for {
				_, err := c.Info(ctx)
				if err == nil {
					break
				}
				if !errors.Is(err, client.ErrGone) {
					t.Fatal(err)
				}
				time.Sleep(time.Millisecond) // until it listens: nobody says so
			}
			notElf := filepath.Join(dir, "text")
			if err := os.WriteFile(notElf, []byte("no kernel"), 0o600); err != nil {
				t.Fatal(err)
			}
			err := errors.Join(c.SetBootSource(ctx, client.BootSource{Kernel: notElf}), c.SetMachineConfig(ctx, client.MachineConfig{CPUs: 1, MemoryMiB: 64}))
			if err != nil {
				t.Fatal(err)
			}
			var refused *client.Error
			if err := c.Start(ctx); !errors.As(err, &refused) || !strings.Contains(refused.Message, "not started") {
				t.Fatalf("a text was booted: %v", err)
			}
			status := 0
			switch how {
			case "signal":
				status = 128 + int(syscall.SIGTERM)
				err = p.Kill(syscall.SIGTERM)
			case "SIGKILL":
				status = 128 + int(syscall.SIGKILL)
				err = p.Kill(syscall.SIGKILL)
			case "kill":
				status = 128 + int(syscall.SIGKILL)
				err = c.Kill(ctx)
			default:
				status = 3
				err = errors.Join(c.SetBootSource(ctx, client.BootSource{Kernel: clitest.DemoKernel(t, dir), BootArgs: "demo=exit=3"}),
					c.SetNetworkInterface(ctx, client.NetworkInterface{ID: "eth0", HostDevice: "tap0"}))
				if err == nil {
					err = c.Start(ctx) // answered, however soon the guest ends
				}
			}
			if err != nil {
				t.Fatal(err)
			}
			p.Ended(status)
			for { // its keeper, where it was killed
				if _, err := os.Stat(socket); errors.Is(err, os.ErrNotExist) {
					break
				}
				if ctx.Err() != nil {
					t.Fatal("the socket is left")
				}
				time.Sleep(time.Millisecond)
			}
		})
	}
}

// TestAPIDocumented runs the commands of docs/api.md with curl.
func TestAPIDocumented(t *testing.T) {
	t.Parallel()
	clitest.NeedKVM(t)
	if _, err := exec.LookPath("curl"); err != nil {
		t.Skipf("NOT RUN: %v", err)
	}
	page, err := os.ReadFile("../../../docs/api.md")
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	if err := os.Rename(clitest.DemoKernel(t, dir), filepath.Join(dir, "netbsd")); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(dir, "root.img"), make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	path, env := clitest.Program()
	if err := os.Symlink(path, filepath.Join(dir, "smolvmm")); err != nil {
		t.Fatal(err)
	}
	script := "set -eux\n"
	blocks := regexp.MustCompile("(?ms)^```sh\n(.*?)^```$").FindAllSubmatch(page, -1)
	if len(blocks) < 3 {
		t.Fatalf("%d blocks of commands", len(blocks))
	}
	for _, b := range blocks {
		script += string(b[1])
	}
	// The demo guest runs until it is ended in this mode.
	script = strings.ReplaceAll(script, `"boot_args": "-v"`, `"boot_args": "demo=count"`)
	ctx, cancel := context.WithTimeout(t.Context(), time.Minute)
	defer cancel()
	c := exec.CommandContext(ctx, "sh", "-c", script)
	c.Dir, c.Env, c.WaitDelay = dir, append(append(os.Environ(), env...), "PATH="+dir+":"+os.Getenv("PATH")), 10*time.Second
	out, err := c.CombinedOutput()
	if err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	for _, want := range []string{`"state":"Not started"`, `"mem_size_mib":128`, `"kernel_image_path":"netbsd"`, "# TYPE smolvmm_vcpu_exits_total counter", `"name":"web-1"`, `"interfaces":[{`, `"openapi": "3.0.3"`, `"asked":false`, `"event":"ended"`} {
		if !strings.Contains(string(out), want) {
			t.Errorf("no %s in\n%s", want, out)
		}
	}
	for _, f := range []string{"m.log", "m.metrics"} {
		if b, err := os.ReadFile(filepath.Join(dir, f)); err != nil || len(b) == 0 {
			t.Errorf("%s: %q, %v", f, b, err)
		}
	}
}

// TestAPIRefused: flags that cannot be are refused before anything is opened.
func TestAPIRefused(t *testing.T) {
	dir := t.TempDir()
	for want, args := range map[string][]string{
		"letters, digits and hyphens": {"--api-sock", filepath.Join(dir, "s"), "--id", "a_b"},
		"an address of the loopback":  {"--api-sock", filepath.Join(dir, "s"), "--metrics-addr", "0.0.0.0:9"},
		"must be text or json":        {"--api-sock", filepath.Join(dir, "s"), "--log-format", "xml"},
		"at most 107":                 {"--api-sock", "/tmp/" + strings.Repeat("n", 110)},
		"no such file or directory":   {"--api-sock", filepath.Join(dir, "none", "s")},
	} {
		if r := invoke(t, nil, args...); r.Status != cli.StatusUsage || !strings.Contains(r.Err, want) {
			t.Errorf("%v: %d %q, want %q", args, r.Status, r.Err, want)
		}
	}
}
