// Package dcm reads and splices DICOM files (PS3.10) without ever interpreting
// more of them than it must.
//
// A reader needs two types. [Object] is what [Scan] returns: an index of the
// data elements of one stored file, with accessors that read single values on
// demand. [Editor] replaces, inserts and removes elements and writes the result
// with every other byte copied from the source.
//
// Nothing in a file is trusted. The scan is a loop over an explicit stack, not
// a recursion; depth, element count and every length are checked before they
// are used; a value is read only when it is asked for, so a 2 GB object costs a
// few kilobytes. A damaged file yields what stood before the damage together
// with a [ScanError].
package dcm
