// Package spool keeps what the pipeline must not forget: image files and the
// journal that says what has happened to each of them.
//
// The two types a reader needs are [Store] (files: stream in, make durable,
// verify, remove) and [Journal] (SQLite: instances, series, deliveries).
// A Store file carries enough to rebuild the Journal, see [Record].
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
