package api

import (
	"fmt"
	"strings"
	"time"

	"github.com/smolvmm/smolvmm/vmm"
)

// The JSON of Firecracker's API (src/firecracker/swagger/firecracker.yaml of
// 1.17). Fields that smolvmm has no use for are there to be refused by name when
// they ask for something.

// BootSource is PUT /boot-source.
type BootSource struct {
	Kernel   string `json:"kernel_image_path"`
	BootArgs string `json:"boot_args,omitempty"`
	Initrd   string `json:"initrd_path,omitempty"`
}

// MachineConfig is /machine-config. PATCH leaves out what stays: hence pointers.
type MachineConfig struct {
	CPUs            *int    `json:"vcpu_count,omitempty"`
	MemoryMiB       *uint64 `json:"mem_size_mib,omitempty"`
	SMT             *bool   `json:"smt,omitempty"`
	HTEnabled       *bool   `json:"ht_enabled,omitempty"` // before Firecracker 1.0
	CPUTemplate     *string `json:"cpu_template,omitempty"`
	TrackDirtyPages *bool   `json:"track_dirty_pages,omitempty"`
	HugePages       *string `json:"huge_pages,omitempty"`
}

// Drive is PUT /drives/{id}.
type Drive struct {
	ID       string       `json:"drive_id"`
	Path     string       `json:"path_on_host,omitempty"`
	Root     bool         `json:"is_root_device"`
	ReadOnly bool         `json:"is_read_only"`
	PartUUID string       `json:"partuuid,omitempty"`
	Cache    string       `json:"cache_type,omitempty"`
	Engine   string       `json:"io_engine,omitempty"`
	Limiter  *RateLimiter `json:"rate_limiter,omitempty"`
	Socket   string       `json:"socket,omitempty"`
}

// DrivePatch is PATCH /drives/{id}.
type DrivePatch struct {
	ID      string       `json:"drive_id"`
	Path    string       `json:"path_on_host,omitempty"`
	Limiter *RateLimiter `json:"rate_limiter,omitempty"`
}

// NetworkInterface is PUT /network-interfaces/{id}.
type NetworkInterface struct {
	ID         string       `json:"iface_id"`
	HostDevice string       `json:"host_dev_name"`
	MAC        string       `json:"guest_mac,omitempty"`
	MTU        int          `json:"mtu,omitempty"`
	RX         *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX         *RateLimiter `json:"tx_rate_limiter,omitempty"`
	AllowMMDS  bool         `json:"allow_mmds_requests,omitempty"` // before Firecracker 1.0
}

// NetworkPatch is PATCH /network-interfaces/{id}.
type NetworkPatch struct {
	ID string       `json:"iface_id"`
	RX *RateLimiter `json:"rx_rate_limiter,omitempty"`
	TX *RateLimiter `json:"tx_rate_limiter,omitempty"`
}

// RateLimiter bounds bytes and operations. Ones that are all zero bound nothing.
type RateLimiter struct {
	Bandwidth *TokenBucket `json:"bandwidth,omitempty"`
	Ops       *TokenBucket `json:"ops,omitempty"`
}

// TokenBucket refills Size tokens in RefillMS milliseconds.
type TokenBucket struct {
	Size     int64  `json:"size"`
	Burst    *int64 `json:"one_time_burst,omitempty"`
	RefillMS int64  `json:"refill_time"`
}

// Vsock is PUT /vsock.
type Vsock struct {
	ID   string `json:"vsock_id,omitempty"`
	CID  uint64 `json:"guest_cid"`
	Path string `json:"uds_path"`
}

// BootOptions is /smolvmm/boot: what of a boot Firecracker has no words for.
type BootOptions struct {
	// ACPI tells of the devices by ACPI tables, for Linux; NetBSD has no use for it.
	ACPI bool `json:"acpi"`
}

type action struct {
	Type string `json:"action_type"`
}

type vmState struct {
	State string `json:"state"`
}

type metricsSink struct {
	Path string `json:"metrics_path"`
}

// loggerConfig is PUT /logger.
type loggerConfig struct {
	Path       string `json:"log_path,omitempty"`
	Level      string `json:"level,omitempty"`
	ShowLevel  bool   `json:"show_level,omitempty"`
	ShowOrigin bool   `json:"show_log_origin,omitempty"`
	Module     string `json:"module,omitempty"`
}

type stopRequest struct {
	GraceMS int64 `json:"grace_ms"`
}

// maxBucket bounds what a bucket may say, so that its rate fits 63 bits: 1 TiB in
// a millisecond is more than any link has.
const maxBucket = 1 << 40

// maxRefill is the longest that a bucket may save up: a minute, as for -net.
const maxRefill = time.Minute

// none: it bounds nothing.
func (l *RateLimiter) none() bool {
	return l == nil || l.Bandwidth.none() && l.Ops.none()
}

func (b *TokenBucket) none() bool { return b == nil || b.Size == 0 || b.RefillMS == 0 }

// Limit is the limiter as vmm has it: rates, and one time for which an idle
// interface saves them up.
func (l *RateLimiter) Limit() (out vmm.NetLimit, err error) {
	if l.none() {
		return out, nil
	}
	for _, b := range []struct {
		name   string
		bucket *TokenBucket
		rate   *uint64
	}{{"bandwidth", l.Bandwidth, &out.BytesPerSecond}, {"ops", l.Ops, &out.PacketsPerSecond}} {
		if b.bucket.none() {
			continue
		}
		refill := time.Duration(b.bucket.RefillMS) * time.Millisecond
		switch {
		case b.bucket.Size < 0 || b.bucket.Size > maxBucket:
			return out, fmt.Errorf("%s: size %d: must be between 0 and %d", b.name, b.bucket.Size, int64(maxBucket))
		case b.bucket.RefillMS < 0 || b.bucket.RefillMS > maxRefill.Milliseconds():
			return out, fmt.Errorf("%s: refill_time %d: must be between 0 and %d ms", b.name, b.bucket.RefillMS, maxRefill.Milliseconds())
		case b.bucket.Burst != nil && *b.bucket.Burst != 0:
			return out, fmt.Errorf("%s: smolvmm has no one_time_burst: leave it out", b.name)
		case out.Burst != 0 && out.Burst != refill:
			return out, fmt.Errorf("bandwidth and ops must have the same refill_time")
		}
		out.Burst = refill
		*b.rate = max(1, uint64(b.bucket.Size)*1000/uint64(b.bucket.RefillMS))
	}
	return out, nil
}

// checkID is Firecracker's rule for the names of drives and interfaces, with a
// bound on their length.
func checkID(id string) error {
	switch {
	case id == "":
		return fmt.Errorf("The ID cannot be empty.")
	case len(id) > maxID || strings.ContainsFunc(id, func(r rune) bool {
		return !(r == '_' || r >= '0' && r <= '9' || r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z')
	}):
		return fmt.Errorf("API Resource IDs can only contain alphanumeric characters and underscores, at most %d of them.", maxID)
	}
	return nil
}

// maxID bounds an ID, in bytes; a disk's serial number has 20.
const maxID = 64
