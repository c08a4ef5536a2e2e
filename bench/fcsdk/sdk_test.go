// Package fcsdk drives smolvmm with firecracker-go-sdk as it is published. It is a
// module of its own, so that the SDK's dependencies are nobody else's.
package fcsdk

import (
	"bytes"
	"context"
	"errors"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	firecracker "github.com/firecracker-microvm/firecracker-go-sdk"
	models "github.com/firecracker-microvm/firecracker-go-sdk/client/models"
	ops "github.com/firecracker-microvm/firecracker-go-sdk/client/operations"
	"github.com/sirupsen/logrus"
)

// guest is the demo guest's kernel: it needs no file system.
const guest = "../../vmm/demo/guest.elf"

// patience is for a whole machine's life; one takes milliseconds.
const patience = time.Minute

var build = sync.OnceValues(func() (string, error) {
	dir, err := os.MkdirTemp("", "fcsdk-*")
	if err != nil {
		return "", err
	}
	out := filepath.Join(dir, "smolvmm")
	cmd := exec.Command("go", "build", "-buildvcs=false", "-o", out, "./cmd/smolvmm/smolvmm-full")
	cmd.Dir = "../.."
	cmd.Env = append(os.Environ(), "CGO_ENABLED=0", "GOFLAGS=-mod=readonly")
	if b, err := cmd.CombinedOutput(); err != nil {
		return "", errors.New(err.Error() + "\n" + string(b))
	}
	return out, nil
})

func TestMain(m *testing.M) {
	status := m.Run()
	if out, err := build(); err == nil {
		os.RemoveAll(filepath.Dir(out))
	}
	os.Exit(status)
}

// console takes what the guest prints and lets a test wait for a line.
type console struct {
	mu    sync.Mutex
	text  bytes.Buffer
	wants string
	got   chan struct{}
}

func expect(line string) *console { return &console{wants: line, got: make(chan struct{})} }

func (c *console) Write(p []byte) (int, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.text.Write(p)
	if c.wants != "" && strings.Contains(c.text.String(), c.wants) {
		c.wants = ""
		close(c.got)
	}
	return len(p), nil
}

func (c *console) String() string {
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.text.String()
}

// machine makes an SDK's machine of a mode of the demo guest's.
func machine(t *testing.T, ctx context.Context, out io.Writer, mode string, change func(*firecracker.Config)) (*firecracker.Machine, *client) {
	t.Helper()
	if _, err := os.Stat("/dev/kvm"); err != nil {
		t.Skipf("NOT RUN: no KVM: %v", err)
	}
	bin, err := build()
	if err != nil {
		t.Fatal(err)
	}
	dir := t.TempDir()
	disk := filepath.Join(dir, "disk.img")
	if err := os.WriteFile(disk, make([]byte, 1<<20), 0o600); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "api.sock")
	cfg := firecracker.Config{
		SocketPath:      socket,
		VMID:            "sdk-test",
		KernelImagePath: guest,
		KernelArgs:      "demo=" + mode,
		Drives:          firecracker.NewDrivesBuilder(disk).Build(),
		MachineCfg:      models.MachineConfiguration{VcpuCount: firecracker.Int64(1), MemSizeMib: firecracker.Int64(64)},
	}
	if change != nil {
		change(&cfg)
	}
	log := logrus.New()
	log.SetLevel(logrus.DebugLevel)
	log.SetOutput(lines{t})
	log.SetFormatter(&logrus.TextFormatter{DisableTimestamp: true, DisableColors: true})
	entry := logrus.NewEntry(log)
	// The SDK puts --id and --no-seccomp behind by itself only where it makes
	// the command; what it would give is given here.
	cmd := firecracker.VMCommandBuilder{}.WithBin(bin).WithSocketPath(socket).
		AddArgs("--id", cfg.VMID, "--no-seccomp").WithStdout(out).WithStderr(lines{t}).Build(ctx)
	c := &client{firecracker.NewClient(socket, entry, false)}
	m, err := firecracker.NewMachine(ctx, cfg, firecracker.WithProcessRunner(cmd), firecracker.WithLogger(entry))
	if err != nil {
		t.Fatal(err)
	}
	return m, c
}

// client is the SDK's low-level one.
type client struct{ *firecracker.Client }

// lines puts what is written into the test's log.
type lines struct{ t *testing.T }

func (l lines) Write(p []byte) (int, error) {
	l.t.Log(strings.TrimRight(string(p), "\n"))
	return len(p), nil
}

func state(t *testing.T, m *firecracker.Machine, want string) {
	t.Helper()
	info, err := m.DescribeInstanceInfo(context.Background())
	if err != nil {
		t.Fatal(err)
	}
	t.Logf("GET /: app_name=%s id=%s state=%s vmm_version=%s", *info.AppName, *info.ID, *info.State, *info.VmmVersion)
	if *info.State != want || *info.ID != "sdk-test" {
		t.Fatalf("the machine %s is %q, want %q", *info.ID, *info.State, want)
	}
}

// TestLife: create, start, describe, pause, resume, stop.
func TestLife(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	out := expect("ok count")
	m, c := machine(t, ctx, out, "count", func(cfg *firecracker.Config) {
		dir := filepath.Dir(cfg.SocketPath)
		cfg.LogPath, cfg.LogLevel = filepath.Join(dir, "log"), "Debug"
		cfg.MetricsPath = filepath.Join(dir, "metrics")
		if err := errors.Join(os.WriteFile(cfg.LogPath, nil, 0o600), os.WriteFile(cfg.MetricsPath, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		cfg.NetworkInterfaces = firecracker.NetworkInterfaces{{
			StaticConfiguration: &firecracker.StaticNetworkConfiguration{HostDevName: "tap0", MacAddress: "02:00:5e:10:00:01"},
			InRateLimiter:       &models.RateLimiter{Bandwidth: &models.TokenBucket{Size: firecracker.Int64(10 << 20), RefillTime: firecracker.Int64(1000)}},
		}}
	})
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	select {
	case <-out.got:
	case <-ctx.Done():
		t.Fatalf("the guest did not speak: %q", out)
	}
	state(t, m, "Running")
	if v, err := m.GetFirecrackerVersion(ctx); err != nil || v == "" {
		t.Errorf("version %q: %v", v, err)
	} else {
		t.Logf("GET /version: %s", v)
	}
	if err := m.PauseVM(ctx); err != nil {
		t.Fatal(err)
	}
	state(t, m, "Paused")
	if err := m.ResumeVM(ctx); err != nil {
		t.Fatal(err)
	}
	state(t, m, "Running")
	cfg, err := c.GetMachineConfiguration()
	if err != nil || *cfg.Payload.VcpuCount != 1 || *cfg.Payload.MemSizeMib != 64 {
		t.Errorf("machine-config %+v: %v", cfg, err)
	}
	full, err := c.GetExportVMConfig()
	if err != nil || len(full.Payload.Drives) != 1 || *full.Payload.BootSource.KernelImagePath != guest || len(full.Payload.NetworkInterfaces) != 1 {
		t.Errorf("vm/config %+v: %v", full, err)
	}
	flush := models.InstanceActionInfo{ActionType: firecracker.String("FlushMetrics")}
	if _, err := c.CreateSyncAction(ctx, &flush); err != nil {
		t.Error(err)
	}
	metrics, err := os.ReadFile(m.Cfg.MetricsPath)
	if err != nil || !bytes.Contains(metrics, []byte(`"block_root_drive"`)) && !bytes.Contains(metrics, []byte(`"block_`)) {
		t.Errorf("metrics %q: %v", metrics, err)
	}
	t.Logf("metrics: %s", bytes.TrimSpace(metrics))

	// There is no agent in this guest, and the refusal says so.
	err = m.Shutdown(ctx)
	var bad *ops.CreateSyncActionBadRequest
	if !errors.As(err, &bad) || !strings.Contains(bad.Payload.FaultMessage, "no agent") {
		t.Errorf("Shutdown: %v", err)
	} else {
		t.Logf("SendCtrlAltDel: %s", bad.Payload.FaultMessage)
	}
	if err := m.StopVMM(); err != nil {
		t.Fatal(err)
	}
	err = m.Wait(ctx)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != 128+15 {
		t.Errorf("Wait: %v, want exit status 143", err)
	}
	if _, err := os.Stat(m.Cfg.SocketPath); !errors.Is(err, os.ErrNotExist) {
		t.Errorf("the socket is still there: %v", err)
	}
	log, err := os.ReadFile(m.Cfg.LogPath)
	if err != nil || !bytes.Contains(log, []byte("kernel loaded")) {
		t.Errorf("log %q: %v", log, err)
	}
}

// TestEnds: the process's end is the guest's; a reset is the way in which guests
// of Firecracker's shut down, and no failure.
func TestEnds(t *testing.T) {
	for mode, want := range map[string]int{"exit=7": 7, "exit=0": 0, "reboot=kbd": 0} {
		t.Run(mode, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(context.Background(), patience)
			defer cancel()
			m, _ := machine(t, ctx, io.Discard, mode, nil)
			if err := m.Start(ctx); err != nil { // answered, however soon the guest ends
				t.Fatal(err)
			}
			err := m.Wait(ctx)
			var exit *exec.ExitError
			got := 0
			if errors.As(err, &exit) {
				got = exit.ExitCode()
			} else if err != nil {
				t.Fatal(err)
			}
			if got != want {
				t.Errorf("status %d, want %d", got, want)
			}
		})
	}
}

// TestPipes: the log and the metrics go to named pipes that the SDK makes and reads.
func TestPipes(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	log := expect("kernel loaded")
	out := expect("ok count")
	m, c := machine(t, ctx, out, "count", func(cfg *firecracker.Config) {
		dir := filepath.Dir(cfg.SocketPath)
		cfg.LogFifo, cfg.LogLevel, cfg.FifoLogWriter = filepath.Join(dir, "log.fifo"), "Debug", log
		cfg.MetricsFifo = filepath.Join(dir, "metrics.fifo")
	})
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	for _, c := range []*console{log, out} {
		select {
		case <-c.got:
		case <-ctx.Done():
			t.Fatalf("waited in vain: %q", c)
		}
	}
	// Nobody reads this pipe: that holds nothing up.
	flush := models.InstanceActionInfo{ActionType: firecracker.String("FlushMetrics")}
	for range 200 {
		if _, err := c.CreateSyncAction(ctx, &flush); err != nil {
			t.Fatal(err)
		}
	}
	state(t, m, "Running")
	if err := m.StopVMM(); err != nil {
		t.Fatal(err)
	}
	_ = m.Wait(ctx)
}

// TestRefused: what smolvmm does not have is refused by name.
func TestRefused(t *testing.T) {
	ctx, cancel := context.WithTimeout(context.Background(), patience)
	defer cancel()
	smt, _ := machine(t, ctx, io.Discard, "count", func(cfg *firecracker.Config) { cfg.MachineCfg.Smt = firecracker.Bool(true) })
	if err := smt.Start(ctx); err == nil || !strings.Contains(err.Error(), "hyperthreads") {
		t.Errorf("Start with smt: %v", err)
	}
	m, c := machine(t, ctx, io.Discard, "count", nil)
	if err := m.Start(ctx); err != nil {
		t.Fatal(err)
	}
	if _, err := c.PutMmds(ctx, map[string]string{"a": "b"}); err == nil || !strings.Contains(err.Error(), "metadata service") {
		t.Errorf("PutMmds: %v", err)
	} else {
		t.Log(err)
	}
	if _, err := c.DescribeBalloonConfig(ctx); err == nil || !strings.Contains(err.Error(), "balloon") {
		t.Errorf("DescribeBalloonConfig: %v", err)
	} else {
		t.Log(err)
	}
	if err := m.CreateSnapshot(ctx, "mem", "state"); err == nil || !strings.Contains(err.Error(), "snapshots") {
		t.Errorf("CreateSnapshot: %v", err)
	} else {
		t.Log(err)
	}
	if err := m.StopVMM(); err != nil {
		t.Fatal(err)
	}
	_ = m.Wait(ctx)
}
