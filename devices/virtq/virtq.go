// Package virtq is the device's side of the split virtqueue (VirtIO 1.2 §2.7):
// rings validated once, chains checked before anyone sees them.
package virtq
