// Package protection lets go of storage objects that are deleted and no longer used. Admission
// gives a persistent volume claim, a persistent volume and a volume attributes class a finalizer;
// here it is taken away once no pod, no claim and no volume needs the object. uses... are pure;
// Controller is one kind's loop. Start at New.
package protection
