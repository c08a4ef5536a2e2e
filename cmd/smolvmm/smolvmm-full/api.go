package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"runtime/debug"
	"strconv"
	"strings"
	"sync"
	"syscall"

	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/api"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/cli"
	"github.com/smolvmm/smolvmm/cmd/smolvmm/internal/network"
	"github.com/smolvmm/smolvmm/vmm"
	"github.com/smolvmm/smolvmm/vmm/client"
)

// serve boots what the flags describe and answers over HTTP, if only by logging as it
// does there.
func serve(b *cli.BootFlags, argv []string, s cli.Streams, changed func(string) bool) error {
	if err := checkAPI(&b.API); err != nil {
		return err
	}
	if b.API.Socket != "" && b.Kernel == "" {
		return serveFirst(b, argv, s, changed)
	}
	if err := logAsAsked(b, s); err != nil {
		return err
	}
	cfg, err := b.Config(argv, s)
	if err != nil {
		return err
	}
	o := b.Options()
	if b.API.Socket != "" || b.API.Metrics != "" {
		a, err := serveBoot(b, &cfg, nil, s)
		if err != nil {
			cli.Wipe(cfg.Items)
			return err
		}
		o.Attached = append(o.Attached, a)
	}
	return cli.RunMachine(cfg, o, s)
}

// logAsAsked makes what the monitor says JSON, where the flags want that.
func logAsAsked(b *cli.BootFlags, s cli.Streams) error {
	if b.API.LogFormat != api.JSON {
		return nil
	}
	l, err := api.NewLog(s.Err, api.JSON, cli.LevelOf(b.Verbose), true)
	if err != nil {
		return cli.Usagef("-log-format %w", err)
	}
	b.Log = l.Logger()
	return nil
}

// checkAPI refuses flags that are wrong, before anything is opened.
func checkAPI(a *cli.ApiFlags) error {
	if a.ID != "" {
		if err := api.CheckID(a.ID); err != nil {
			return cli.Usagef("-id %.70q: %w", a.ID, err)
		}
	}
	if a.LogFormat != api.Text && a.LogFormat != api.JSON && a.LogFormat != "" {
		return cli.Usagef("-log-format %q: must be text or json", a.LogFormat)
	}
	if a.Metrics != "" {
		if err := api.Loopback(a.Metrics); err != nil {
			return cli.Usagef("-metrics-addr %q: %w", a.Metrics, err)
		}
	}
	return nil
}

// apiServer joins the API to the machine of this process: an attachment.
type apiServer struct {
	server *api.Server
	l      *net.UnixListener // nil: metrics alone
	tcp    net.Listener
	path   string
	stays  bool              // the socket is removed with the folder that it is in
	starts chan startRequest // of a process that waits for InstanceStart
	killed chan string       // the same, before there is a machine
	over   chan struct{}     // closed by Release at the end of it all
	agent  *guestAgent       // nil: the guest has been given no key

	mu      sync.Mutex // guards what follows
	m       *vmm.Machine
	nw      *network.Network
	cancel  context.CancelCauseFunc
	kill    string // why, if it came before cancel
	pending chan error
	ran     bool
}

// startRequest is an InstanceStart that waits for its answer.
type startRequest struct {
	spec  api.Spec
	reply chan error
}

// apiOptions are what an API is opened with.
type apiOptions struct {
	socket, metrics string // "": not served
	config          api.Config
}

// openAPI listens, and answers from now on.
func openAPI(o apiOptions) (a *apiServer, err error) {
	a = &apiServer{path: o.socket, starts: make(chan startRequest), killed: make(chan string, 1), over: make(chan struct{})}
	opened := a
	defer func() {
		if err != nil {
			opened.unlisten()
		}
	}()
	if o.socket != "" {
		if a.l, err = cli.ListenUnix(o.socket); err != nil {
			return nil, cli.Usagef("-api-sock %s: %w", o.socket, err)
		}
	}
	if o.metrics != "" {
		// Without keep-alive, of which no connection within a host has need.
		lc := net.ListenConfig{KeepAlive: -1}
		if a.tcp, err = lc.Listen(context.Background(), "tcp", o.metrics); err != nil {
			return nil, cli.Usagef("-metrics-addr %s: %w", o.metrics, err)
		}
	}
	o.config.Host = a
	if o.config.Version == "" {
		o.config.Version = cli.VersionOf(debug.ReadBuildInfo())
	}
	if a.server, err = api.New(o.config); err != nil {
		return nil, err
	}
	if a.l != nil {
		a.server.Serve(a.l)
	}
	if a.tcp != nil {
		a.server.ServeMetrics(a.tcp)
	}
	return a, nil
}

func (a *apiServer) unlisten() {
	if a.l != nil {
		a.l.Close()
	}
	if a.tcp != nil {
		a.tcp.Close()
	}
}

// Attach tells the jail and the keeper of the sockets, and where a kill goes.
func (a *apiServer) Attach(cfg *vmm.Config, con *cli.Console, cancel context.CancelCauseFunc) {
	cfg.Confine.API, cfg.Confine.APITCP = a.l != nil, a.tcp != nil
	a.mu.Lock()
	defer a.mu.Unlock()
	a.cancel = cancel
	if a.kill != "" {
		cancel(cli.SignalError{Sig: syscall.SIGKILL, Why: a.kill})
	}
	if a.l != nil && a.stays {
		a.l.SetUnlinkOnClose(false)
	} else if a.l != nil && !a.waits() {
		con.Job.Sockets = append(con.Job.Sockets, cli.SocketFile{Path: a.path})
		before := con.Kept
		con.Kept = func() {
			a.l.SetUnlinkOnClose(false)
			if before != nil {
				before()
			}
		}
	}
}

// waits: the process was started to be told over the socket what to boot, and its
// socket has a keeper of its own. The caller holds mu.
func (a *apiServer) waits() bool { return a.pending != nil }

// Running says that the guest is about to run.
func (a *apiServer) Running(_ context.Context, m *vmm.Machine, nw *network.Network) error {
	a.mu.Lock()
	a.m, a.nw, a.ran = m, nw, true
	a.mu.Unlock()
	if a.agent != nil {
		a.agent.reach(m, nw)
		a.server.SetAgent(a.agent)
	}
	go func() {
		select {
		case <-m.Started():
			a.server.Started()
			a.answer(nil)
		case <-a.over:
		}
	}()
	return nil
}

// answer answers who waits for the start, once.
func (a *apiServer) answer(err error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.pending != nil {
		select {
		case a.pending <- err:
		default: // answered before
		}
	}
}

// Ended says how the guest ended, and ends the server: nobody asks about what is
// being given back.
func (a *apiServer) Ended(exit vmm.Exit, err error) {
	e := client.Exit{How: cli.EndOf(exit, err), Kind: "failed"}
	if err == nil {
		e.Kind = exit.End.String()
		var st *cli.StatusError
		if errors.As(cli.StatusOf(exit), &st) {
			e.Status = st.Status
		}
	}
	// A guest may be over before the goroutine of Running has said that it began.
	if a.hasRun() {
		a.server.Started()
		a.answer(nil)
	} else {
		a.answer(errors.New(e.How))
	}
	a.server.Ended(e)
	_ = a.server.Close()
}

// hasRun says whether the guest was entered.
func (a *apiServer) hasRun() bool {
	m, _ := a.machine()
	if m == nil {
		return false
	}
	select {
	case <-m.Started():
		return true
	default:
		return false
	}
}

// Release ends what is left of the API of a process that boots by itself.
func (a *apiServer) Release(err error) {
	a.mu.Lock()
	waits := a.waits()
	a.mu.Unlock()
	if waits {
		a.answer(err)
		return
	}
	a.finish()
}

func (a *apiServer) finish() {
	close(a.over)
	_ = a.server.Close()
	a.unlisten()
}

// The machine as the API knows it.

func (a *apiServer) Start(s api.Spec) error {
	r := startRequest{s, make(chan error, 1)}
	select {
	case a.starts <- r:
	case <-a.over:
		return errors.New("the process is ending")
	}
	select {
	case err := <-r.reply:
		return err
	case <-a.over:
		return errors.New("the process is ending")
	}
}

func (a *apiServer) machine() (*vmm.Machine, *network.Network) {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.m, a.nw
}

func (a *apiServer) Pause() error {
	m, _ := a.machine()
	return m.Pause()
}

func (a *apiServer) Resume() error {
	m, _ := a.machine()
	return m.Resume()
}

func (a *apiServer) Metrics() vmm.Metrics {
	m, _ := a.machine()
	return m.Metrics()
}

func (a *apiServer) Egress() []map[string]uint64 {
	_, nw := a.machine()
	return nw.Counters()
}

func (a *apiServer) Flows(max int) (out []client.Flow) {
	_, nw := a.machine()
	for _, f := range nw.Flows(max) {
		out = append(out, client.Flow{
			Interface: f.Interface, Protocol: f.Proto, Guest: f.Guest.String(), Peer: f.Peer.String(), Inbound: f.Inbound,
			Sent: f.Sent, Received: f.Received, Since: f.Since.UTC(),
		})
	}
	return out
}

func (a *apiServer) Ports() (out []client.Port) {
	_, nw := a.machine()
	for _, p := range nw.Ports() {
		out = append(out, client.Port{Network: p.Network, Host: p.Host, Guest: p.Guest})
	}
	return out
}

func (a *apiServer) Kill(why string) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.kill = why
	if a.cancel != nil {
		a.cancel(cli.SignalError{Sig: syscall.SIGKILL, Why: why})
	}
	select {
	case a.killed <- why:
	default:
	}
}

// serveBoot answers for the machine that the flags describe; n is nil without a name.
func serveBoot(b *cli.BootFlags, cfg *vmm.Config, n *namedMachine, s cli.Streams) (*apiServer, error) {
	g, err := giveAgent(cfg)
	if err != nil {
		return nil, err
	}
	cpus, mib := b.CPUs, cfg.Memory>>20
	spec := api.Spec{
		Boot:    api.BootSource{Kernel: b.Kernel, BootArgs: b.Append},
		Machine: api.MachineConfig{CPUs: &cpus, MemoryMiB: &mib},
		Options: api.BootOptions{ACPI: b.ACPI},
	}
	for i, d := range cfg.Disks {
		spec.Drives = append(spec.Drives, api.Drive{ID: "ld" + strconv.Itoa(i), Path: d.Path, Root: i == 0, ReadOnly: d.ReadOnly})
	}
	for i := range b.Plan.Interfaces {
		spec.Nets = append(spec.Nets, api.NetworkInterface{ID: "vioif" + strconv.Itoa(i), HostDevice: "user"})
	}
	c := api.Config{
		ID: b.API.ID, Image: b.Kernel, Booted: true, Spec: spec, Logger: cfg.Log, ConsolePath: consolePath(b.Console),
	}
	if n != nil {
		c.Image, c.ConsolePath, c.Console = n.claim.Spec.Image, n.claim.ConsolePath(), n.claim.Console
	}
	a, err := openAPI(apiOptions{b.API.Socket, b.API.Metrics, c})
	if err != nil {
		return nil, err
	}
	a.stays = n != nil
	a.agent = g
	a.tell(s)
	return a, nil
}

// tell says where metrics are, if that is not what the flag says.
func (a *apiServer) tell(s cli.Streams) {
	if a.tcp != nil {
		fmt.Fprintf(s.Err, "smolvmm: metrics on http://%v/metrics\n", a.tcp.Addr())
	}
}

// consolePath is the file that a console goes to, if it does.
func consolePath(where string) string {
	path, ok := strings.CutPrefix(where, "file:")
	if !ok {
		return ""
	}
	return strings.TrimSuffix(path, ",append")
}
