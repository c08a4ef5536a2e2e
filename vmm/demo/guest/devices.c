// Every virtio-mmio device on the command line, by type (VirtIO 1.2 §5).

#include "blk.h"
#include "net.h"
#include "vsock.h"
#include "check.h"

static const char *const names[] = { "absent", "net", "block", "console", "entropy", "balloon", "6", "7", "scsi", "9p", "10", "11", "12",
	"13", "14", "15", "gpu", "17", "input", "socket" };

void check_devices(void)
{
	virtio_find();
	for (u32 i = 0; i < nvdevs; i++) {
		struct vdev *d = &vdevs[i];
		u64 t = rdtsc();

		switch (d->id) {
		case 0:	// a place without a device
			break;
		case 1:
			net_check(d);
			phase("net", t);
			break;
		case 2:
			blk_check(d);
			phase("blk", t);
			break;
		case 19:
			vs_check(d);
			phase("vsock", t);
			break;
		default:
			skip("device", "dev=%u at=0x%lx type=%u name=%s: no driver", d->n, d->base, d->id, d->id < COUNT(names) ? names[d->id] : "?");
		}
	}
	ok("devices", "found=%u", nvdevs);
}
