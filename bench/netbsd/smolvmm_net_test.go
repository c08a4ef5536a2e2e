package netbsd

import (
	"context"
	"encoding/json"
	"flag"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// netHost is what TestNetworkOnHost needs, from TestNetwork by the environment.
type netHost struct {
	Kernel, Image, Smolvmm, Captures string
	Lab                              bool // it runs in the lab, as root, and may change the host
	Stream                           int64
}

const netHostVar = "SMOLVMM_NETBSD_NETWORK"

var stream = flag.Int64("stream", 4<<20, "TestNetwork sends so many bytes each way; 104857600 takes some minutes in the lab")

// TestNetwork boots NetBSD with a network by smolvmm: here, or with everything
// that it talks to in the lab. TestNetworkOnHost is what it runs.
func TestNetwork(t *testing.T) {
	if testing.Short() {
		t.Skip("NOT RUN: boots NetBSD")
	}
	kernel, err := Kernel()
	need(t, err)
	dir := t.TempDir()
	h := netHost{Kernel: kernel, Smolvmm: filepath.Join(dir, "smolvmm"), Image: netImage(t), Captures: dir, Stream: *stream}
	need(t, Program(t.Context(), h.Smolvmm, "cmd/smolvmm"))
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	inner := []string{self, "-test.run=^TestNetworkOnHost$", "-test.v", "-test.timeout=24m"}
	argv := inner
	if err := KVM(); err != nil {
		t.Logf("in the lab: %v", err)
		lab, err := Lab(t.Context(), dir)
		need(t, err)
		out := h
		h = netHost{Kernel: "/t/kernel", Smolvmm: "/t/smolvmm", Image: "/t/root.img", Captures: "/t/out", Lab: true, Stream: out.Stream}
		argv = append([]string{lab, "-timeout", "25m", "-m", "3072", "-env", netHostVar, "-file", out.Kernel + ":" + h.Kernel, "-file", out.Smolvmm + ":" + h.Smolvmm,
			"-file", out.Image + ":" + h.Image, "-out", h.Captures + "/small.pcap:" + dir + "/small.pcap"}, inner...)
	}
	env, err := json.Marshal(h)
	if err != nil {
		t.Fatal(err)
	}
	cmd := exec.CommandContext(t.Context(), argv[0], argv[1:]...)
	cmd.Dir = t.TempDir() // the lab puts it in
	cmd.Env = append(os.Environ(), netHostVar+"="+string(env))
	said, err := cmd.CombinedOutput()
	t.Logf("%s", said)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(string(said), "--- PASS: TestNetworkOnHost") {
		t.Error("nothing was run")
	}
	malformed(t, filepath.Join(dir, "small.pcap"))
}

// malformed has tshark look at every frame of a capture.
func malformed(t *testing.T, capture string) {
	t.Helper()
	if st, err := os.Stat(capture); err != nil || st.Size() < 1000 {
		t.Fatalf("no capture: %v", err)
	}
	tshark, err := exec.LookPath("tshark")
	if err != nil {
		t.Log("NOT RUN: no tshark to look at the capture")
		return
	}
	out, err := exec.CommandContext(t.Context(), tshark, "-r", capture,
		"-o", "ip.check_checksum:TRUE", "-o", "tcp.check_checksum:TRUE", "-o", "udp.check_checksum:TRUE",
		"-Y", "_ws.malformed || ip.checksum.status == 0 || tcp.checksum.status == 0 || udp.checksum.status == 0 || icmp.checksum.status == 0 || icmpv6.checksum.status == 0").Output()
	if err != nil {
		t.Fatalf("tshark: %v", err)
	}
	if len(out) > 0 {
		t.Errorf("malformed, or a wrong checksum:\n%s", out)
	}
	for _, want := range []string{"dhcp", "icmpv6.type == 134", "arp", "icmp.type == 0", "dns", "tcp.flags.reset == 1", "ip.flags.mf == 1"} {
		out, err := exec.CommandContext(t.Context(), tshark, "-r", capture, "-Y", want).Output()
		if err != nil || len(out) == 0 {
			t.Errorf("the capture has no frame that is %s: %v", want, err)
		}
	}
}

// outside is an address of this host that is not its loopback's: in the lab one
// that is given to it. Without any, a guest cannot be told from the host.
func outside(t *testing.T, lab bool) string {
	t.Helper()
	if lab {
		// TEST-NET-1, RFC 5737.
		const addr = "192.0.2.1"
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		defer unix.Close(fd)
		req, err := unix.NewIfreq("lo:1")
		if err != nil {
			t.Fatal(err)
		}
		if err := req.SetInet4Addr(net.ParseIP(addr).To4()); err != nil {
			t.Fatal(err)
		}
		if err := unix.IoctlIfreq(fd, unix.SIOCSIFADDR, req); err != nil {
			t.Fatalf("giving the lab an address: %v", err)
		}
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte("0 2147483647"), 0); err != nil {
			t.Fatal(err)
		}
		return addr
	}
	addrs, err := net.InterfaceAddrs()
	if err != nil {
		t.Fatal(err)
	}
	for _, a := range addrs {
		if n, ok := a.(*net.IPNet); ok && n.IP.To4() != nil && n.IP.IsGlobalUnicast() {
			return n.IP.String()
		}
	}
	t.Skip("NOT RUN: this host has no IPv4 address but the loopback's")
	return ""
}

// TestNetworkOnHost is the host's side: servers on it, smolvmm with a guest that
// uses them, and clients of the guest's own server.
func TestNetworkOnHost(t *testing.T) {
	env := os.Getenv(netHostVar)
	if env == "" {
		t.Skip("run by TestNetwork")
	}
	var h netHost
	if err := json.Unmarshal([]byte(env), &h); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(h.Captures, 0o700); err != nil {
		t.Fatal(err)
	}
	at := outside(t, h.Lab)
	const gateway, gateway6 = "10.0.2.2", "fd73:6d6f:6c76::2"
	for _, c := range []struct {
		name  string
		size  int64
		flags func(near, near6 host) []string
		args  func(far, near, near6 host) []string
		init  string // the whole configuration, in place of args
		unix  bool   // the guest's server is reached by a Unix socket
		says  []string
	}{
		{name: "protocols", size: 1 << 20,
			flags: func(near, near6 host) []string {
				return []string{"-host-service", near.http, "-host-service", near6.http, "-host-service", near.half, "-host-service", near.udp, "-search", "a.example", "-name", "web-1",
					"-dns", "far.example=" + at, "-pcap", filepath.Join(h.Captures, "small.pcap")}
			},
			args: func(far, near, near6 host) []string {
				return []string{"-resolv", "nameserver 10.0.2.3\n", "-lookup", "host.smolvmm.internal=" + gateway + ",far.example=" + at,
					"-ping", gateway + "," + gateway6 + "," + at, "-refused", at + ":1", "-echo", at + ":" + far.udp, "-half", at + ":" + far.half,
					"-many", "http://far.example:" + far.http + "/",
					"-get", "http://far.example:" + far.http + "/bytes,http://host.smolvmm.internal:" + near.http + "/bytes,http://[" + gateway6 + "]:" + near6.http + "/bytes",
					"-put", "http://" + at + ":" + far.http + "/put,http://" + gateway + ":" + near.http + "/put,http://[" + gateway6 + "]:" + near6.http + "/put",
					"-serve", ":8080"}
			},
			says: []string{"smolinit: vioif0: DHCP: 10.0.2.15/24, gateway 10.0.2.2, DNS 10.0.2.3", "smolinit: vioif0: router advertisement: fd73:6d6f:6c76:0:"}},
		{name: "a stream each way", size: h.Stream,
			args: func(far, _, _ host) []string {
				return []string{"-get", "http://" + at + ":" + far.http + "/bytes", "-put", "http://" + at + ":" + far.http + "/put", "-serve", ":8080"}
			}},
		{name: "the host's loopback is closed", size: 4096,
			args: func(_, near, _ host) []string {
				return []string{"-refused", gateway + ":" + near.http, "-serve", ":8080"}
			}},
		{name: "deny-all", size: 4096, flags: func(_, _ host) []string { return []string{"-egress", "deny-all"} },
			args: func(far, _, _ host) []string {
				return []string{"-closed", at + ":" + far.http, "-ping", gateway, "-serve", ":8080"}
			}},
		{name: "the host link alone", size: 4096, unix: true, flags: func(_, _ host) []string { return []string{"-net", "none", "-host-link"} },
			args: func(far, _, _ host) []string { return []string{"-closed", at + ":" + far.http, "-serve", ":8080"} },
			says: []string{"smolinit: vioif0: DHCP: 10.0.255.15/24"}},
		{name: "a read-only root", size: 4096,
			init: `{"root_readonly": true, "argv": ["netcheck", "-ping", "10.0.2.2", "-serve", ":8080"]}`,
			says: []string{"smolinit: /etc/resolv.conf: the root is read-only"}},
		{name: "static", size: 4096,
			init: `{"net": [{"address": "10.0.2.15/24", "gateway": "10.0.2.2", "dns": ["10.0.2.3"]}],
				"argv": ["netcheck", "-lookup", "host.smolvmm.internal=10.0.2.2", "-ping", "10.0.2.2", "-serve", ":8080"]}`},
	} {
		t.Run(c.name, func(t *testing.T) {
			ctx, cancel := context.WithTimeout(t.Context(), 15*time.Minute)
			defer cancel()
			far, near, near6 := serveHost(t, at, c.size), serveHost(t, "127.0.0.1", c.size), serveHost(t, "::1", c.size)
			free, err := net.Listen("tcp", "127.0.0.1:0")
			if err != nil {
				t.Fatal(err)
			}
			published := free.Addr().String()
			free.Close()
			_, port, err := net.SplitHostPort(published)
			if err != nil {
				t.Fatal(err)
			}
			publish, dial := "127.0.0.1:"+port+":8080", (&net.Dialer{}).DialContext
			if c.unix {
				sock := filepath.Join(t.TempDir(), "s")
				publish = "unix:" + sock + ":8080"
				dial = func(ctx context.Context, _, _ string) (net.Conn, error) {
					return (&net.Dialer{}).DialContext(ctx, "unix", sock)
				}
			}
			disk := h.Image + ",overlay"
			if c.init != "" && strings.Contains(c.init, "root_readonly") {
				disk = h.Image + ",ro"
			}
			argv := []string{h.Smolvmm, "-kernel", h.Kernel, "-disk", disk, "-m", "256", "-timeout", "14m", "-p", publish}
			if c.flags != nil {
				argv = append(argv, c.flags(near, near6)...)
			}
			if c.init != "" {
				item := filepath.Join(t.TempDir(), "init.json")
				if err := os.WriteFile(item, []byte(c.init), 0o600); err != nil {
					t.Fatal(err)
				}
				argv = append(argv, "-fw_cfg", "name=opt/smolvmm/init.json,file="+item)
			} else {
				argv = append(append(argv, "--", "netcheck", "-size", strconv.FormatInt(c.size, 10), "-limit", "6m"), c.args(far, near, near6)...)
			}
			g := startGuest(ctx, t, argv)
			if g.waitFor("netcheck: serving at") {
				client := &http.Client{Transport: &http.Transport{DialContext: dial}}
				said, err := visit(ctx, client, "http://"+published, servedSize)
				if err != nil {
					t.Error(err)
				}
				t.Log(said)
			}
			if got := g.status(t); got != 0 {
				t.Errorf("status %d", got)
			}
			for _, s := range append(c.says, "netcheck: serve: served until /end", "netcheck: ok") {
				if !strings.Contains(g.said(), s) {
					t.Errorf("the console lacks %q", s)
				}
			}
			t.Log(g.said())
		})
	}
}
