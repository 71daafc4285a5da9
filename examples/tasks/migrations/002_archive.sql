-- What is done leaves the list after a while, and each day gets a digest.
alter table tasks add column archived timestamptz;
create index tasks_in_list on tasks (done, id desc) where archived is null;
create table digests (
	day      date primary key,
	created  integer not null,
	finished integer not null
);
