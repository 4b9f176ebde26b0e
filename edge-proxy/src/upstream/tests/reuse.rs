//! Which stream carries another request, and for how long it is kept.

use super::super::pool::IDLE_PER_SPRITE;
use super::*;

async fn pooled(pool: &Rc<Pool<Pipe>>, run: u64) -> DuplexStream {
    let (ours, mut guest) = tokio::io::duplex(4096);
    let (read, write) = split(ours);
    let mut connection = Connection::new(Halves::new(read, write), place(run));
    guest.write_all(b"HTTP/1.1 204 No Content\r\n\r\n").await.unwrap();
    let head = exchange(GET, &mut connection).await.unwrap().head;
    drop(ResponseBody::new(connection, &head, Rc::clone(pool)));
    guest
}

#[test]
fn only_a_quiet_stream_to_the_same_place_is_taken_and_the_latest_first() {
    run(async {
        let pool = Rc::new(Pool::new());
        let _first = pooled(&pool, 1).await;
        let mut unsolicited = pooled(&pool, 1).await;
        let closed = pooled(&pool, 1).await;
        let last = pooled(&pool, 1).await;
        unsolicited.write_all(b"H").await.unwrap();
        drop(closed);
        assert!(pool.take(&name(), |place| place.run == 2).is_none());
        assert_eq!(pool.len(), 4);
        assert!(pool.take(&name(), |_| true).is_some_and(|connection| connection.is_reused()));
        drop(last);
        assert!(pool.take(&name(), |_| true).is_some());
        assert_eq!(pool.len(), 0);
        assert!(pool.take(&name(), |_| true).is_none());
    });
}

#[test]
fn a_reused_stream_carries_the_next_exchange() {
    run(async {
        let pool = Rc::new(Pool::new());
        let mut guest = pooled(&pool, 1).await;
        let mut connection = pool.take(&name(), |wanted| *wanted == place(1)).unwrap();
        let begun = exchange(GET, &mut connection);
        let answer = guest.write_all(b"HTTP/1.1 200 OK\r\ncontent-length: 2\r\n\r\nok");
        let (begun, _) = tokio::join!(begun, answer);
        let answer = begun.unwrap().finish(connection).await.unwrap();
        assert!(answer.body == b"ok" && answer.pooled);
    });
}

#[test]
fn idle_streams_age_by_sweeps_and_are_bounded() {
    run(async {
        let pool = Rc::new(Pool::new());
        let mut guests = vec![pooled(&pool, 1).await];
        (0..2).for_each(|_| pool.sweep());
        guests.push(pooled(&pool, 1).await);
        pool.sweep();
        assert_eq!(pool.len(), 2);
        pool.sweep();
        assert_eq!(pool.len(), 1);
        (0..2).for_each(|_| pool.sweep());
        assert!(pool.is_empty());
        for _ in 0..IDLE_PER_SPRITE + 5 {
            guests.push(pooled(&pool, 1).await);
        }
        assert_eq!(pool.len(), IDLE_PER_SPRITE);
    });
}

#[test]
fn a_new_run_closes_the_streams_of_the_old_one_and_an_old_stream_does_not_come_back() {
    run(async {
        let pool = Rc::new(Pool::new());
        let _old = (pooled(&pool, 1).await, pooled(&pool, 1).await);
        let _new = pooled(&pool, 2).await;
        assert_eq!(pool.len(), 1);
        let _late = pooled(&pool, 1).await;
        assert_eq!(pool.len(), 1);
        pool.drop_run(&name(), Generation(7), 1);
        assert_eq!(pool.len(), 1);
        pool.drop_run(&name(), Generation(7), 2);
        assert!(pool.is_empty());
        let _again = pooled(&pool, 3).await;
        pool.forget(&name());
        assert!(pool.is_empty());
    });
}
