package examples

import (
	"bytes"
	"encoding/json"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/smolvmm/smolvmm/netstack"
	"github.com/smolvmm/smolvmm/netstack/netstacktest"
)

// The tests here put a client and a server that others wrote on the host, and
// everything that they say to each other through the guest: client → published
// port → the guest's relay → the gateway's host service → server. So each byte
// goes through the stack both ways in, and both ways out.

// relayed gives the address of a published port behind which a guest relays to
// the host's loopback port.
func relayed(t *testing.T, port uint16) (host, service string, m *machine) {
	t.Helper()
	m = open(t, filepath.Join(t.TempDir(), "capture.pcapng"), netstack.Config{HostServices: []uint16{port}}, netstacktest.Options{})
	// Without the capture between them: these clients do not wait for a file.
	g, err := netstacktest.New(m.network, m.options)
	if err != nil {
		t.Fatal(err)
	}
	m.guest = g
	gateway := netip.AddrPortFrom(netip.MustParseAddr("10.0.2.2"), port)
	stop := m.listen(func(in net.Conn) {
		out, err := m.guest.DialTCP(t.Context(), gateway)
		if err != nil {
			return // the client sees the end, and says so
		}
		defer out.Close()
		var done sync.WaitGroup
		done.Go(func() {
			_, _ = io.Copy(out, in)
			_ = out.CloseWrite()
		})
		_, _ = io.Copy(in, out)
		_ = in.(interface{ CloseWrite() error }).CloseWrite()
		done.Wait()
	})
	t.Cleanup(stop)
	host, service, err = net.SplitHostPort(m.set.Addrs()[0].Addrs[0].String())
	if err != nil {
		t.Fatal(err)
	}
	return host, service, m
}

// freePort is a port of the loopback that nobody has now. A server that cannot
// be handed a socket needs its number.
func freePort(t *testing.T) uint16 {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	return l.Addr().(*net.TCPAddr).AddrPort().Port()
}

// serve runs a server until the test's end, and returns when it takes
// connections on the port.
func serve(t *testing.T, port uint16, name string, args ...string) {
	t.Helper()
	var said output
	ended := start(t, &said, name, args...)
	// Nothing tells of another program's listen(2) but a connection.
	at := fmt.Sprintf("127.0.0.1:%d", port)
	for tick := time.NewTicker(10 * time.Millisecond); ; <-tick.C {
		if c, err := net.Dial("tcp", at); err == nil {
			c.Close()
			return
		}
		select {
		case <-ended:
			t.Fatalf("%s ended\n%s", name, said.String())
		case <-t.Context().Done():
			t.Fatalf("%s does not listen\n%s", name, said.String())
		default:
		}
	}
}

// serveSaying is serve for a server that tells when it listens, and whose first
// connection is not to be a trial.
func serveSaying(t *testing.T, ready, name string, args ...string) {
	t.Helper()
	said := output{ready: ready, seen: make(chan struct{})}
	select {
	case <-said.seen:
	case <-start(t, &said, name, args...):
		t.Fatalf("%s ended\n%s", name, said.String())
	case <-t.Context().Done():
		t.Fatalf("%s does not say %q\n%s", name, ready, said.String())
	}
}

// start runs a program until the test's end; the channel is closed when it has ended.
func start(t *testing.T, said *output, name string, args ...string) (ended <-chan struct{}) {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		path = "/usr/sbin/" + name
	}
	if _, err := os.Stat(path); err != nil {
		t.Skipf("NOT RUN: no %s: %v", name, err)
	}
	cmd := exec.Command(path, args...)
	cmd.Stdout, cmd.Stderr = said, said
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	over := make(chan struct{})
	go func() {
		defer close(over)
		_ = cmd.Wait()
	}()
	t.Cleanup(func() {
		_ = cmd.Process.Kill()
		<-over
	})
	return over
}

// output keeps what a program says, and closes seen when ready is part of it.
type output struct {
	ready string
	seen  chan struct{}

	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	before := strings.Contains(o.text.String(), o.ready)
	o.text.Write(p)
	if o.seen != nil && !before && strings.Contains(o.text.String(), o.ready) {
		close(o.seen)
	}
	return len(p), nil
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// TestIperf3: iperf3's client and server, both ways, with its own control
// connection beside the streams.
func TestIperf3(t *testing.T) {
	// Nothing here measures: so many bytes, however long they take. The client ends
	// when it has sent them, and the server counts not what then is still between the
	// two, each with buffers of megabytes; for four streams that can be nearly all, so
	// they have a second instead.
	for name, row := range map[string]struct {
		want float64
		args []string
	}{
		"up":           {1 << 20, []string{"-n", "16M"}},
		"down":         {1 << 20, []string{"-n", "16M", "-R"}},
		"four streams": {64 << 10, []string{"-t", "1", "-P", "4"}},
	} {
		t.Run(name, func(t *testing.T) {
			// A server each: it is busy for a while after its client has ended.
			port := freePort(t)
			serveSaying(t, "Server listening", "iperf3", "-s", "-1", "--forceflush", "-B", "127.0.0.1", "-p", fmt.Sprint(port))
			host, service, m := relayed(t, port)
			out := run(t, "", "iperf3", append([]string{"-c", host, "-p", service, "-J", "-w", "128K"}, row.args...)...)
			var report struct {
				Error string
				End   struct {
					Received struct{ Bytes float64 } `json:"sum_received"`
				}
			}
			if err := json.Unmarshal([]byte(out), &report); err != nil || report.Error != "" {
				t.Fatalf("iperf3 %v: %v %s\n%s", row.args, err, report.Error, out)
			}
			if got := report.End.Received.Bytes; got < row.want {
				t.Errorf("iperf3 %v: %.0f bytes came, fewer than %.0f", row.args, got, row.want)
			}
			if n := m.network.Stats().GuestBad; n != 0 {
				t.Errorf("the network found %d of the guest's frames bad", n)
			}
		})
	}
}

// TestNginx: nginx and curl, 20 transfers at once over kept connections.
func TestNginx(t *testing.T) {
	dir := t.TempDir()
	data := make([]byte, 1<<20)
	_, _ = rand.NewChaCha8([32]byte{9}).Read(data)
	if err := os.WriteFile(filepath.Join(dir, "data"), data, 0o644); err != nil {
		t.Fatal(err)
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	port := freePort(t)
	conf := fmt.Sprintf(`daemon off; pid %[1]s/pid; error_log stderr; master_process off;
events { worker_connections 64; }
http {
	access_log off; client_body_temp_path %[1]s/b; proxy_temp_path %[1]s/p; fastcgi_temp_path %[1]s/f; uwsgi_temp_path %[1]s/u; scgi_temp_path %[1]s/s;
	server { listen 127.0.0.1:%[2]d; root %[1]s; }
}
`, dir, port)
	if me.Uid == "0" {
		conf = "user root;\n" + conf
	}
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, port, "nginx", "-p", dir, "-e", "stderr", "-c", file)
	host, service, _ := relayed(t, port)
	url := "http://" + net.JoinHostPort(host, service) + "/data"
	args := []string{"--noproxy", "*", "-sS", "-f", "-Z", "--parallel-max", "10"}
	for i := range 20 {
		args = append(args, url, "-o", filepath.Join(dir, fmt.Sprint("got", i)))
	}
	run(t, "", "curl", args...)
	for i := range 20 {
		got, err := os.ReadFile(filepath.Join(dir, fmt.Sprint("got", i)))
		if err != nil || !bytes.Equal(got, data) {
			t.Errorf("transfer %d: %d bytes, not those that nginx has: %v", i, len(got), err)
		}
	}
}

// TestSSH: OpenSSH's client and server: 4 MB through a command and back, and the
// command's exit status.
func TestSSH(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"host", "user"} {
		run(t, "", "ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-f", filepath.Join(dir, name))
	}
	me, err := user.Current()
	if err != nil {
		t.Fatal(err)
	}
	if me.Uid == "0" {
		// Where sshd puts its unprivileged half; the package's own script makes it.
		if err := os.MkdirAll("/run/sshd", 0o755); err != nil {
			t.Fatal(err)
		}
	}
	port := freePort(t)
	conf := fmt.Sprintf(`ListenAddress 127.0.0.1:%[2]d
HostKey %[1]s/host
AuthorizedKeysFile %[1]s/user.pub
PidFile none
StrictModes no
PermitRootLogin yes
`, dir, port)
	file := filepath.Join(dir, "conf")
	if err := os.WriteFile(file, []byte(conf), 0o600); err != nil {
		t.Fatal(err)
	}
	serve(t, port, "sshd", "-D", "-e", "-f", file)
	host, service, _ := relayed(t, port)
	data := make([]byte, 4<<20)
	_, _ = rand.NewChaCha8([32]byte{11}).Read(data)
	args := []string{
		"-F", "none", "-i", filepath.Join(dir, "user"), "-o", "StrictHostKeyChecking=no", "-o", "UserKnownHostsFile=/dev/null",
		"-o", "BatchMode=yes", "-o", "LogLevel=ERROR", "-p", service, me.Username + "@" + host,
	}
	if got := run(t, string(data), "ssh", append(args, "cat")...); got != string(data) {
		t.Errorf("cat over ssh: %d bytes came back, not those sent", len(got))
	}
	cmd := exec.CommandContext(t.Context(), "ssh", append(args, "exit 7")...)
	if err := cmd.Run(); cmd.ProcessState.ExitCode() != 7 {
		t.Errorf("exit 7 over ssh: %v", err)
	}
	if got := strings.TrimSpace(run(t, "", "ssh", append(args, "echo", "$SSH_CONNECTION")...)); !strings.HasSuffix(got, fmt.Sprint(" 127.0.0.1 ", port)) {
		t.Errorf("the server's end of the connection: %q", got)
	}
}
