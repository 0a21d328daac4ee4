// Package spool keeps the image files, so that none is lost or changed, and a file for each thing that people
// asked for. What has happened to an image is in package journal.
//
// The type a reader needs is [Store]: stream in, make durable, verify, remove. A file carries enough to rebuild the
// journal, see [Record].
//
// # What is assumed about the disk
//
//  1. A file whose Sync returned nil keeps its bytes through a power loss.
//  2. A name is durable only after Sync of its folder returned nil.
//  3. Rename within the spool is atomic: after a crash the file has the old
//     name, the new name, or (folder never synced) neither; never half a file.
//  4. A disk may still rot. Every data set carries a CRC-32C that is checked
//     before a byte of it can be complete at a receiver.
//
// Nothing is promised to a peer before file, folder and journal row are all
// durable. So whatever else a crash leaves behind was never acknowledged.
package spool
