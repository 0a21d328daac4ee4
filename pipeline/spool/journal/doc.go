// Package journal is the record of what has happened to every image of the spool: a SQLite database of series,
// instances (originals and derived objects), their places in the two lanes, deliveries and flags.
//
// [Journal] is the only memory of what has been done. Every stage of the pipeline takes its work from it and writes
// the result back in one change; on nil of a method that changes something, that is durable. It can be rebuilt from
// the files, but for what was delivered.
//
// One file holds one idea: series.go, instance.go (what is there), lane.go (what both lanes do) and high.go (what only
// the high lane
// has),
// delivery.go (what is sent where), flag.go (what people asked for), purge.go (what may go), recover.go (what is asked
// only at a start), schema.go and migrate.go (tables of this version and of earlier ones).
package journal
