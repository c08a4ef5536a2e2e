package client

import "time"

// State is where a machine is in its life.
type State string

// The states. The first three are Firecracker's words.
const (
	NotStarted State = "Not started"
	Running    State = "Running"
	Paused     State = "Paused"
	Ended      State = "Ended" // its process is about to go
)

// Info is what a machine's process tells of itself: GET /smolvmm/info.
type Info struct {
	Name    string    `json:"name"`
	Image   string    `json:"image,omitempty"` // what it was started from, as the user called it
	State   State     `json:"state"`
	PID     int       `json:"pid"`
	Version string    `json:"version"`           // smolvmm's
	Created time.Time `json:"created"`           // of the process
	Started time.Time `json:"started,omitzero"`  // of the guest; zero before it runs
	CPUs    int       `json:"cpus"`              // the guest's
	Console string    `json:"console,omitempty"` // the file that the console is kept in
	// UptimeMS is since Started, in milliseconds; pauses count.
	UptimeMS int64 `json:"uptime_ms"`
	// CPUTimeMS is the processor time of the whole process, the guest's included,
	// in milliseconds; GuestTimeMS is the part that the host's kernel counts as a
	// guest's.
	CPUTimeMS   int64  `json:"cpu_time_ms"`
	GuestTimeMS int64  `json:"guest_time_ms"`
	Memory      Memory `json:"memory"`
	Ports       []Port `json:"ports"`
	// Exit is how the guest ended, once State is Ended.
	Exit *Exit `json:"exit,omitempty"`
}

// Memory is a machine's, in bytes.
type Memory struct {
	Guest uint64 `json:"guest_bytes"` // what the guest was given
	// Resident is what the process keeps in RAM of the host, the guest's pages
	// included; GuestResident is those alone.
	Resident      uint64 `json:"resident_bytes"`
	GuestResident uint64 `json:"guest_resident_bytes"`
}

// Port is a published port: GET /smolvmm/ports.
type Port struct {
	Network string   `json:"network"` // tcp, udp or unix
	Host    []string `json:"host"`    // addresses with ports, or the socket's path
	Guest   string   `json:"guest"`   // address with port, or the port alone: the first interface's
}

// Exit is how a guest ended.
type Exit struct {
	How    string `json:"how"`    // one line
	Kind   string `json:"kind"`   // exit, reboot, triple fault, stopped and so on, or "failed"
	Status int    `json:"status"` // the process's: with kind "exit" the guest's own, 0 to 255
}

// Egress is what became of what the guest sent out: GET /smolvmm/egress. The
// counters are by interface, in the machine's order.
type Egress struct {
	Interfaces []map[string]uint64 `json:"interfaces"`
}

// Flow is a connection, or an exchange of datagrams or pings, that is open behind an
// interface, in the guest's terms: GET /smolvmm/flows.
type Flow struct {
	Interface int    `json:"interface"` // from 0, in the machine's order
	Protocol  string `json:"protocol"`  // tcp, udp or icmp (echo, of both families)
	Guest     string `json:"guest"`     // address with port; an echo's port is its identifier
	Peer      string `json:"peer"`      // address with port
	Inbound   bool   `json:"inbound"`   // the host began it
	// Sent and Received are bytes of payload, from and to the guest.
	Sent     uint64    `json:"sent_bytes"`
	Received uint64    `json:"received_bytes"`
	Since    time.Time `json:"since"`
}

// BootOptions is GET and PUT /smolvmm/boot.
type BootOptions struct {
	ACPI bool `json:"acpi"` // tables that Linux finds its devices by
}

// Event is one line of GET /smolvmm/events.
type Event struct {
	Seq   uint64    `json:"seq"` // from 1, without gaps
	Time  time.Time `json:"time"`
	Event string    `json:"event"` // one of the Event constants
	Text  string    `json:"text,omitempty"`
	Exit  *Exit     `json:"exit,omitempty"` // with EventEnded
}

// Events, in the order of a machine's life.
const (
	EventCreated  = "created"  // the process answers
	EventStarted  = "started"  // the guest runs
	EventPaused   = "paused"   //
	EventResumed  = "resumed"  //
	EventStopping = "stopping" // somebody asked for the end; Text says who and how
	EventEnded    = "ended"    // the guest has ended; the process follows
	EventLost     = "lost"     // this reader was too slow, and events are missing
)

// BootSource is PUT /boot-source.
type BootSource struct {
	Kernel   string `json:"kernel_image_path"`
	BootArgs string `json:"boot_args,omitempty"`
	Initrd   string `json:"initrd_path,omitempty"`
}

// MachineConfig is GET and PUT /machine-config.
type MachineConfig struct {
	CPUs      int    `json:"vcpu_count"`
	MemoryMiB uint64 `json:"mem_size_mib"`
	SMT       bool   `json:"smt"`
	// TrackDirtyPages must be false.
	TrackDirtyPages bool   `json:"track_dirty_pages"`
	HugePages       string `json:"huge_pages,omitempty"` // None or 2M
}

// Drive is PUT /drives/{id}.
type Drive struct {
	ID       string `json:"drive_id"`
	Path     string `json:"path_on_host"`
	Root     bool   `json:"is_root_device"`
	ReadOnly bool   `json:"is_read_only"`
}

// NetworkInterface is PUT /network-interfaces/{id}.
type NetworkInterface struct {
	ID string `json:"iface_id"`
	// HostDevice is kept and told, and not used: the interface leads to the
	// user network.
	HostDevice string `json:"host_dev_name"`
	MAC        string `json:"guest_mac,omitempty"`
}
