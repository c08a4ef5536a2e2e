package api

import (
	"encoding/json"
	"errors"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// step is a request and what must come of it.
type step struct {
	method, url, body string
	status            int
	want              string // in the answer
}

func walk(t *testing.T, path string, steps []step) {
	t.Helper()
	for _, s := range steps {
		status, body := ask(t, path, s.method, s.url, s.body)
		if status != s.status || !strings.Contains(body, s.want) {
			t.Errorf("%s %s %s: %d %s, want %d with %q", s.method, s.url, s.body, status, body, s.status, s.want)
		}
		if status >= 300 {
			var f struct {
				Message string `json:"fault_message"`
			}
			if err := json.Unmarshal([]byte(body), &f); err != nil || f.Message == "" {
				t.Errorf("%s %s: the refusal is no fault message: %q", s.method, s.url, body)
			}
		}
	}
}

// The life of a machine that is configured over the socket.
func TestFirecrackersLife(t *testing.T) {
	f := newFake()
	s, path := serve(t, Config{Host: f, ID: "m-1", Version: "v1"})
	k, d := file(t), file(t)
	q := func(s string) string { b, _ := json.Marshal(s); return string(b) }
	walk(t, path, []step{
		{"GET", "/", "", 200, `"state":"Not started"`},
		{"GET", "/version", "", 200, `"firecracker_version"`},
		{"GET", "/machine-config", "", 200, `"vcpu_count":1,"mem_size_mib":128`},
		{"PUT", "/machine-config", `{"vcpu_count":2,"mem_size_mib":64}`, 204, ""},
		{"PATCH", "/machine-config", `{"mem_size_mib":96}`, 204, ""},
		{"PATCH", "/machine-config", `{"mem_size_mib":1,"vcpu_count":99}`, 400, "vcpu_count 99"},
		{"GET", "/machine-config", "", 200, `"vcpu_count":2,"mem_size_mib":96`},
		{"PATCH", "/vm", `{"state":"Paused"}`, 400, tooEarly},
		{"PUT", "/actions", `{"action_type":"InstanceStart"}`, 400, "without kernel configuration"},
		{"PUT", "/boot-source", `{"kernel_image_path":"/nowhere/at/all"}`, 400, "The kernel file cannot be opened"},
		{"PUT", "/boot-source", `{"kernel_image_path":` + q(k) + `,"boot_args":"-v"}`, 204, ""},
		{"PUT", "/drives/data", `{"drive_id":"data","path_on_host":` + q(d) + `,"is_root_device":false,"is_read_only":true}`, 204, ""},
		{"PUT", "/drives/root", `{"drive_id":"root","path_on_host":` + q(d) + `,"is_root_device":true}`, 204, ""},
		{"PUT", "/drives/other", `{"drive_id":"other","path_on_host":` + q(d) + `,"is_root_device":true}`, 400, "root block device already exists"},
		{"PUT", "/drives/a-b", `{"drive_id":"a-b","path_on_host":` + q(d) + `,"is_root_device":false}`, 400, "alphanumeric"},
		{"PUT", "/drives/x", `{"drive_id":"y","path_on_host":` + q(d) + `,"is_root_device":false}`, 400, "does not match"},
		{"PUT", "/drives/x", `{"drive_id":"x","path_on_host":"/nowhere","is_root_device":false}`, 400, "no such file"},
		{"PUT", "/drives/x", `{"drive_id":"x","path_on_host":` + q(d) + `,"is_root_device":false,"rate_limiter":{"bandwidth":{"size":1,"refill_time":1}}}`, 400, "rate_limiter"},
		{"PUT", "/network-interfaces/eth0", `{"iface_id":"eth0","host_dev_name":"tap0","guest_mac":"02:00:5E:10:00:01","tx_rate_limiter":{"bandwidth":{"size":1000,"refill_time":100}}}`, 204, ""},
		{"PUT", "/network-interfaces/eth1", `{"iface_id":"eth1","host_dev_name":"tap1","guest_mac":"02:00:5e:10:00:01"}`, 400, "already in use"},
		{"PUT", "/network-interfaces/eth1", `{"iface_id":"eth1","host_dev_name":"tap1","guest_mac":"03:00:5e:10:00:01"}`, 400, "guest_mac"},
		{"PUT", "/vsock", `{"guest_cid":2,"uds_path":"/x"}`, 400, "guest_cid"},
		{"PUT", "/vsock", `{"guest_cid":3,"uds_path":"/x","vsock_id":"v"}`, 204, ""},
		{"PUT", "/metrics", `{"metrics_path":` + q(file(t)) + `}`, 204, ""},
		{"PUT", "/metrics", `{"metrics_path":` + q(file(t)) + `}`, 400, "Reinitialization"},
		{"PUT", "/logger", `{"log_path":"x"}`, 400, "process's own"},
		{"GET", "/smolvmm/boot", "", 200, `{"acpi":false}`},
		{"PUT", "/smolvmm/boot", `{}`, 400, "missing field `acpi`"},
		{"PUT", "/smolvmm/boot", `{"acpi":true}`, 204, ""},
		{"GET", "/smolvmm/boot", "", 200, `{"acpi":true}`},
		{"GET", "/smolvmm/ports", "", 400, tooEarly},
		{"GET", "/smolvmm/flows", "", 400, tooEarly},
		{"GET", "/smolvmm/info", "", 200, `"ports":[]`},
		{"GET", "/metrics", "", 200, `smolvmm_state{state="not_started"} 1`},
	})
	f.set(errors.New("no such KVM"))
	walk(t, path, []step{{"PUT", "/actions", `{"action_type":"InstanceStart"}`, 400, "no such KVM"}})
	f.set(nil)
	walk(t, path, []step{
		{"PUT", "/machine-config", `{"vcpu_count":3,"mem_size_mib":64}`, 204, ""}, // a start that failed leaves it as it was
		{"PUT", "/actions", `{"action_type":"InstanceStart"}`, 204, ""},
		{"GET", "/", "", 200, `"state":"Running"`},
		{"PUT", "/actions", `{"action_type":"InstanceStart"}`, 400, tooLate},
		{"PUT", "/machine-config", `{"vcpu_count":2,"mem_size_mib":64}`, 400, tooLate},
		{"PUT", "/boot-source", `{"kernel_image_path":` + q(k) + `}`, 400, tooLate},
		{"PUT", "/metrics", `{"metrics_path":` + q(file(t)) + `}`, 400, tooLate},
		{"PUT", "/smolvmm/boot", `{"acpi":false}`, 400, tooLate},
		{"PATCH", "/drives/root", `{"drive_id":"root","path_on_host":` + q(d) + `}`, 400, "opens no file"},
		{"PATCH", "/drives/root", `{"drive_id":"root"}`, 204, ""},
		{"PATCH", "/drives/none", `{"drive_id":"none"}`, 400, "no drive"},
		{"PATCH", "/network-interfaces/eth0", `{"iface_id":"eth0","rx_rate_limiter":{}}`, 400, "before the start only"},
		{"PATCH", "/vm", `{"state":"Paused"}`, 204, ""},
		{"PATCH", "/vm", `{"state":"Paused"}`, 204, ""},
		{"GET", "/", "", 200, `"state":"Paused"`},
		{"PUT", "/actions", `{"action_type":"SendCtrlAltDel"}`, 400, "paused guest"},
		{"PATCH", "/vm", `{"state":"Resumed"}`, 204, ""},
		{"PATCH", "/vm", `{"state":"Off"}`, 400, "unknown variant `Off`"},
		{"PUT", "/actions", `{"action_type":"SendCtrlAltDel"}`, 400, ErrNoAgent.Error()},
		{"PUT", "/actions", `{"action_type":"FlushMetrics"}`, 204, ""},
		{"GET", "/vm/config", "", 200, `"drive_id":"root"`},
		{"GET", "/smolvmm/info", "", 200, `"guest_bytes":67108864`},
		{"GET", "/smolvmm/ports", "", 200, `"127.0.0.1:8080"`},
		{"GET", "/smolvmm/egress", "", 200, `"denied":3`},
		{"GET", "/smolvmm/flows", "", 200, `"protocol":"icmp"`},
		{"GET", "/smolvmm/flows?max=1", "", 200, `"sent_bytes":10,"received_bytes":20,"since":"1970-01-01T00:00:02Z"}]`},
		{"GET", "/smolvmm/flows?max=4097", "", 400, "from 0 to 4096"},
		{"GET", "/smolvmm/flows?max=-1", "", 400, "from 0 to 4096"},
		{"GET", "/smolvmm/console", "", 404, "kept nowhere"},
		{"GET", "/smolvmm/agent", "", 426, "Upgrade"},
		{"GET", "/smolvmm/nothing", "", 404, "Invalid"},
		{"GET", "/smolvmm/kill", "", 405, "Invalid"},
		{"GET", "/nothing", "", 400, "Invalid request method and/or path"},
		{"DELETE", "/", "", 400, "Invalid request method and/or path"},
		{"GET", "/", `{}`, 400, "cannot have a body"},
		{"PUT", "/smolvmm/kill", "", 204, ""},
	})
	if why := <-f.killed; !strings.Contains(why, "uid "+itoa(os.Getuid())) {
		t.Errorf("killed by %q", why)
	}
	f.mu.Lock()
	if want := []string{"start", "start", "pause", "resume"}; !slices.Equal(f.calls, want) {
		t.Errorf("the machine was asked %v, want %v", f.calls, want)
	}
	spec := f.spec
	f.mu.Unlock()
	if len(spec.Drives) != 2 || spec.Drives[0].ID != "root" || spec.Drives[1].ID != "data" || !spec.Drives[1].ReadOnly {
		t.Errorf("drives %+v: the root device must be the first", spec.Drives)
	}
	if tx, err := spec.Nets[0].TX.Limit(); err != nil || tx.BytesPerSecond != 10000 || tx.Burst.Milliseconds() != 100 {
		t.Errorf("limit %+v, %v", tx, err)
	}
	s.Ended(client.Exit{How: "the guest exited with status 3", Kind: "exit", Status: 3})
	walk(t, path, []step{
		{"GET", "/smolvmm/info", "", 200, `"exit":{"how":"the guest exited with status 3","kind":"exit","status":3}`},
		{"PATCH", "/vm", `{"state":"Paused"}`, 410, "ended"},
		{"PUT", "/smolvmm/stop", `{"grace_ms":1}`, 410, "ended"},
	})
}

func itoa(n int) string { b, _ := json.Marshal(n); return string(b) }

// A process that boots its machine by itself takes no configuration, from its
// first moment on.
func TestBooted(t *testing.T) {
	mib, cpus := uint64(32), 2
	s, path := serve(t, Config{Booted: true, Spec: Spec{Machine: MachineConfig{CPUs: &cpus, MemoryMiB: &mib}}})
	walk(t, path, []step{
		{"PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64}`, 400, tooLate},
		{"PUT", "/actions", `{"action_type":"InstanceStart"}`, 400, tooLate},
		{"GET", "/machine-config", "", 200, `"vcpu_count":2,"mem_size_mib":32`},
		{"GET", "/", "", 200, `"Not started"`},
	})
	s.Started()
	walk(t, path, []step{{"GET", "/", "", 200, `"id":"` + DefaultID + `","state":"Running"`}})
}

// Bodies are read as strictly as Firecracker reads them.
func TestBodies(t *testing.T) {
	_, path := serve(t, Config{})
	walk(t, path, []step{
		{"PUT", "/machine-config", "", 400, "Empty PUT request."},
		{"PATCH", "/machine-config", "", 400, "Empty PATCH request."},
		{"PATCH", "/machine-config", "{}", 400, "Empty PATCH request."},
		{"PUT", "/machine-config", "{", 400, "deserializing"},
		{"PUT", "/machine-config", "[]", 400, "not a JSON object"},
		{"PUT", "/machine-config", "null", 400, "not a JSON object"},
		{"PUT", "/machine-config", `{"vcpu_count":1}`, 400, "missing field `mem_size_mib`"},
		{"PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64,"wings":2}`, 400, "unknown field `wings`, expected one of `vcpu_count`"},
		{"PUT", "/machine-config", `{"Vcpu_Count":1,"mem_size_mib":64}`, 400, "unknown field `Vcpu_Count`"},
		{"PUT", "/machine-config", `{"vcpu_count":1,"vcpu_count":2,"mem_size_mib":64}`, 400, "duplicate field"},
		{"PUT", "/machine-config", `{"vcpu_count":"1","mem_size_mib":64}`, 400, "a string cannot be a int"},
		{"PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":-64}`, 400, "mem_size_mib"},
		{"PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64} {}`, 400, "trailing"},
		{"PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":{}}`, 400, "an object cannot be"},
		{"PUT", "/machine-config", `{"vcpu_count":[1],"mem_size_mib":64}`, 400, "a list is nowhere expected"},
		{"PUT", "/network-interfaces/a", `{"iface_id":"a","host_dev_name":"t","rx_rate_limiter":{"ops":{"size":1,"refill_time":1,"colour":1}}}`, 400, "unknown field `colour`"},
		{"PUT", "/machine-config", `{"vcpu_count":1,"mem_size_mib":64,"cpu_template":"` + strings.Repeat("x", maxBody) + `"}`, 413, "more than 51200 bytes"},
	})
}

func TestLimit(t *testing.T) {
	n := func(v int64) *int64 { return &v }
	for _, c := range []struct {
		l    *RateLimiter
		want vmm.NetLimit
		err  string
	}{
		{nil, vmm.NetLimit{}, ""},
		{&RateLimiter{}, vmm.NetLimit{}, ""},
		{&RateLimiter{Bandwidth: &TokenBucket{Size: 0, RefillMS: 100}}, vmm.NetLimit{}, ""},
		{&RateLimiter{Ops: &TokenBucket{Size: 5, RefillMS: 1000}}, vmm.NetLimit{PacketsPerSecond: 5, Burst: 1e9}, ""},
		{&RateLimiter{Ops: &TokenBucket{Size: 1, RefillMS: 60000}}, vmm.NetLimit{PacketsPerSecond: 1, Burst: 60e9}, ""},
		{&RateLimiter{Bandwidth: &TokenBucket{Size: 1, RefillMS: 1}, Ops: &TokenBucket{Size: 1, RefillMS: 2}}, vmm.NetLimit{}, "same refill_time"},
		{&RateLimiter{Ops: &TokenBucket{Size: 1, RefillMS: 60001}}, vmm.NetLimit{}, "refill_time"},
		{&RateLimiter{Ops: &TokenBucket{Size: -1, RefillMS: 1}}, vmm.NetLimit{}, "size"},
		{&RateLimiter{Ops: &TokenBucket{Size: 1 << 62, RefillMS: 1}}, vmm.NetLimit{}, "size"},
		{&RateLimiter{Ops: &TokenBucket{Size: 1, RefillMS: 1, Burst: n(1)}}, vmm.NetLimit{}, "one_time_burst"},
		{&RateLimiter{Ops: &TokenBucket{Size: 1, RefillMS: 1, Burst: n(0)}}, vmm.NetLimit{PacketsPerSecond: 1000, Burst: 1e6}, ""},
	} {
		got, err := c.l.Limit()
		if c.err == "" && (err != nil || got != c.want) || c.err != "" && (err == nil || !strings.Contains(err.Error(), c.err)) {
			t.Errorf("%+v: %+v, %v; want %+v, %q", c.l, got, err, c.want, c.err)
		}
	}
}

func TestCheckID(t *testing.T) {
	for id, ok := range map[string]bool{"a": true, "A-9": true, "": false, "a_b": false, "a b": false, strings.Repeat("x", 64): true, strings.Repeat("x", 65): false} {
		if err := CheckID(id); (err == nil) != ok {
			t.Errorf("%q: %v", id, err)
		}
	}
}
